"""Decode speed of files of one model on real text, in turn: which neurons fire depends on what is said.

The built-in sample text is decoded token by token, its first 16 tokens as a prompt. Ratios are taken round by
round, over the first file. `FILE:dense` and `FILE:exact` replace the plan of a file stored by neuron.

    python benchmarks/text_decode.py plain=model.gguf exact=by-neuron.gguf:exact --json result.json
"""

import argparse
import sys
import time
from pathlib import Path

from engines import HotsetEngine
from machine import pairwise, report, span, summary, write_json

from hotset.activations.sample_text import sample_text
from hotset.tokenizer import Tokenizer

PROMPT = 16


def decode(engine: HotsetEngine, tokens: list[int]) -> float:
    """Tokens/s after the prompt."""
    engine.clear()
    engine.step(tokens[:PROMPT])
    start = time.perf_counter()
    for token in tokens[PROMPT:]:
        engine.step([token])
    return (len(tokens) - PROMPT) / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description="Decode a text with files of one model in turn.")
    parser.add_argument("files", nargs="+", metavar="NAME=FILE[:WAY]")
    parser.add_argument("--tokens", type=int, default=144)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    engines = {}
    for entry in args.files:
        name, _, rest = entry.partition("=")
        file, _, way = rest.partition(":")
        engines[name] = HotsetEngine(Path(file), args.threads, args.tokens, way=way or None)
    first = next(iter(engines))
    tokens = list(Tokenizer.from_checkpoint(engines[first].checkpoint).encode(sample_text()))[: args.tokens]
    found: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        decode(engine, tokens)
    for number in range(args.rounds):
        for name in list(engines) if number % 2 == 0 else list(engines)[::-1]:
            found[name].append(decode(engines[name], tokens))
    results = {}
    for name, engine in engines.items():
        ratio = pairwise(found[name], found[first])
        results[name] = {"decode": summary(found[name]), f"over {first}": ratio, "density": engine.density()}
        print(f"{name:10} {span(summary(found[name]))} tok/s  {span(ratio, 2)} of {first}", flush=True)
    if args.json:
        arguments = vars(args) | {"files": [Path(entry.rpartition("/")[2]).name for entry in args.files]}
        write_json(args.json, report("text_decode", arguments, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
