"""What recurrent layers promise: a chat's next turn begins where the last ended, long contexts stay fast.

python benchmarks/synthetic.py qwen3.5-4b --type q4_k --layers 8 --out model.gguf
python benchmarks/recurrent.py model.gguf --threads 2
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from hotset.core.batch import Batch
from hotset.serve.engine import Engine
from hotset.serve.load import load_model
from hotset.state.kv_types import state_bytes


def seconds_to_first_token(
    engine: Engine, prompt: list[int], tokens: int = 16
) -> tuple[float, list[int], int]:
    """Seconds, the answer's ids, and how many of the prompt's tokens were not computed."""
    start = time.perf_counter()
    stream = engine.generate(prompt, max_tokens=tokens)
    answer = [next(stream)]
    first = time.perf_counter() - start
    answer += list(stream)
    return first, [token.id for token in answer], stream.cached_tokens


def turns(path: Path, threads: int, tokens: int) -> None:
    """Time the first tokens of a chat's two turns, and of a second one that goes on from an edited end."""
    engine = Engine.load(path, threads=threads, context=tokens + 512)
    rng = np.random.default_rng(0)
    prompt, more = (rng.integers(300, 30000, count).tolist() for count in (tokens, 24))
    first, answer, _ = seconds_to_first_token(engine, prompt)
    print(f"first turn, {tokens} tokens: {first:.2f} s")
    for name, turn in (("another end", prompt[:-3] + more), ("second turn", prompt + answer + more)):
        seconds, _, cached = seconds_to_first_token(engine, turn)
        print(f"{name}, {cached} of {len(turn)} tokens there: {seconds:.3f} s, {seconds / first:.1%}")
    print(f"one saved state: {state_bytes(engine.model.config) / 1e6:.1f} MB")


def contexts(path: Path, threads: int, lengths: tuple[int, ...], tokens: int) -> None:
    """Time single tokens after so many positions, whose keys and values are zeros."""
    model = load_model(path, threads=threads).transformer
    sequences = [model.sequence(length + tokens, "f16") for length in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        sequence.advance(length)
    times: list[list[float]] = [[] for _ in lengths]
    for token in range(tokens):  # in turn, so that a busy neighbour meets all
        for sequence, own in zip(sequences, times, strict=True):
            start = time.perf_counter()
            model.forward(Batch.of(sequence, np.array([300 + token], np.int32)))
            own.append(time.perf_counter() - start)
    for length, own in zip(lengths, times, strict=True):
        ratio = median(times[0]) / median(own)
        print(f"decode at {length}: {1 / median(own):.2f} tokens/s, {ratio:.2f} of that at {lengths[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Second turns and long contexts of a recurrent model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    contexts(args.model, args.threads, (1000, 32000), args.tokens)
    turns(args.model, args.threads, args.prompt_tokens)


if __name__ == "__main__":
    main()
