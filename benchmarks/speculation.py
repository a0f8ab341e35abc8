"""What speculation without a second model gains: decode speed with and without drafts, in turn; texts equal.

Answers that edit code repeat most of a file that stands in the prompt; prose repeats nothing. First, what a
step of several rows of one sequence takes against one of a single row: it bounds what drafts can gain.

    python benchmarks/speculation.py --model qwen2.5-coder-1.5b.gguf --json result.json
"""

import argparse
import inspect
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import pairwise, report, span, summary, write_json

from hotset.core.batch import Batch
from hotset.serve import draft, reply, room
from hotset.serve.engine import Engine
from hotset.serve.request import Request
from hotset.serve.sampler import Sampling

ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
POSITION = 300
"""Tokens before the rows that are timed."""

EDITS = {
    "rename": (draft, "Rename the function `find` to `look_up`, also where it is called."),
    "constant": (reply, "Add the line `# Copyright 2026` at the top and change nothing else."),
    "docstring": (room, "Change the first line of the module's docstring to one about memory."),
}
PROSE = {
    "story": "Write a long story about a lighthouse keeper who finds a letter.",
    "essay": "Explain in a long essay how cities changed when railways came.",
    "letter": "Write a long letter to a friend about moving to another country.",
}


def cost_of_rows(engine: Engine, repeats: int) -> dict[str, float]:
    """Seconds of a step of so many rows of one sequence, as a multiple of one row's; medians."""
    transformer = engine.model.transformer
    sequence = transformer.sequence(POSITION + max(ROWS), "f16")
    rng = np.random.default_rng(0)
    ids = rng.integers(0, engine.tokenizer.vocab_size, sequence.capacity).astype(np.int32)
    transformer.forward(Batch.of(sequence, ids[:POSITION], lossless=True))
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(repeats + 1):
        for rows, taken in seconds.items():
            start = time.perf_counter()
            transformer.forward(Batch.of(sequence, ids[POSITION : POSITION + rows], logits=None))
            taken.append(time.perf_counter() - start)
            if sequence.reusable(POSITION) != POSITION:
                raise SystemExit("this model cannot go back: its rows cannot be timed so")
            sequence.rewind(POSITION)
    one = median(seconds[1][1:])
    return {str(rows): median(taken[1:]) / one for rows, taken in seconds.items()}


def prompts(engine: Engine, kind: str) -> dict[str, tuple[int, ...]]:
    """Token ids of each prompt of a kind, by its name."""
    if kind == "prose":
        texts = dict(PROSE)
    else:
        texts = {
            name: f"{task} Answer with the whole file and nothing else.\n\n```python\n"
            f"{inspect.getsource(module)}```"
            for name, (module, task) in EDITS.items()
        }
    tokenizer = engine.tokenizer
    return {
        name: tuple(tokenizer.encode_chat([{"role": "user", "content": text}]))
        for name, text in texts.items()
    }


def answer(engine: Engine, ids: tuple[int, ...], sampling: Sampling, tokens: int, speculate: bool) -> Any:
    """The answer's ids, its tokens a second after the first, tokens drafted and accepted."""
    stream = engine.submit(Request(ids, tokens, sampling, speculate=speculate))
    found = [next(stream).id]
    start = time.perf_counter()
    found += [token.id for token in stream]
    rate = (len(found) - 1) / (time.perf_counter() - start)
    return found, rate, stream.drafted_tokens, stream.accepted_tokens


def measure(engine: Engine, kind: str, tokens: int, pairs: int) -> dict[str, Any]:
    """Each prompt of a kind with and without drafts, in turn."""
    sampling = Sampling(temperature=0.8, seed=1) if kind == "prose" else Sampling()
    results = {}
    for name, ids in prompts(engine, kind).items():
        answer(engine, ids, sampling, 8, False)  # reads the prompt
        rates: dict[bool, list[float]] = {True: [], False: []}
        texts = []
        for pair in range(pairs):
            for speculate in (True, False) if pair % 2 else (False, True):
                found, rate, drafted, accepted = answer(engine, ids, sampling, tokens, speculate)
                rates[speculate].append(rate)
                texts.append(found)
                if speculate:
                    drafts = drafted, accepted
        if any(text != texts[0] for text in texts):
            raise SystemExit(f"{name}: the answers differ")
        ratio = pairwise(rates[True], rates[False])
        results[name] = {
            "prompt_tokens": len(ids),
            "answer_tokens": len(texts[0]),
            "drafted": drafts[0],
            "accepted": drafts[1],
            "tokens_per_second": summary(rates[True]),
            "without": summary(rates[False]),
            "ratio": ratio,
        }
        print(f"{kind}, {name}: {span(ratio, 2)}, {drafts[1]} of {drafts[0]} accepted", file=sys.stderr)
    return results


def main() -> int:
    """Print the figures as JSON, last."""
    parser = argparse.ArgumentParser(description="What speculation without a second model gains.")
    parser.add_argument("--model", type=Path, help="A GGUF file; the demo model if not given.")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=256, help="Of each answer.")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="Write the result there too.")
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model, threads=arguments.threads, context=4096, parallel=1)
    results = {
        "cost_of_rows": cost_of_rows(engine, 10),
        "edits": measure(engine, "edits", arguments.tokens, arguments.pairs),
        "prose": measure(engine, "prose", arguments.tokens, arguments.pairs),
    }
    document = report("speculation", vars(arguments), results)
    document["model"] = engine.model.path.name
    if arguments.json:
        write_json(arguments.json, document)
    ratios = {
        kind: {name: round(of["ratio"]["median"], 3) for name, of in results[kind].items()}
        for kind in ("edits", "prose")
    }
    costs = {rows: round(cost, 2) for rows, cost in results["cost_of_rows"].items()}
    print(json.dumps({"cost_of_rows": costs, **ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
