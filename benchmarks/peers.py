"""Hotset against llama.cpp on the same files and threads, measured in turn in one run.

Each engine loads the file once, in a process of its own. A pair is one measurement of each; who goes first
alternates. Ratios are taken pair by pair, and their median is the figure to quote. Beside these, once and
before all else: seconds from the start of the process, with the file in the page cache, to the first token
after a prompt of 32; and at the end the largest memory that each process has had, mapped files included.

    python benchmarks/peers.py --model model-Q4_0.gguf --threads 2 --threads 1 --json result.json
"""

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engines import PEERS, Worker
from machine import fail, model_identity, pairwise, report, span, summary, write_json

FIRST_PROMPT = 32


def compare(
    model: Path, threads: int, tests: dict[str, int], pairs: int, names: tuple[str, ...]
) -> dict[str, Any]:
    """Measure every test (its name, its tokens) `pairs` times with each engine, after an unrecorded round."""
    context = max(tests.values()) + 32
    found: dict[str, dict[str, list[float]]] = {test: {name: [] for name in names} for test in tests}
    first_token, memory = {}, {}
    with ExitStack() as stack:
        workers = []
        for name in names:
            start = time.perf_counter()
            workers.append(stack.enter_context(Worker(name, model, threads, context)))
            workers[-1].ask("prefill", tokens=FIRST_PROMPT)
            first_token[name] = round(time.perf_counter() - start, 2)
        for test, tokens in tests.items():
            for worker in workers:
                worker.ask(test, tokens=tokens)
            for pair in range(pairs):
                order = workers if pair % 2 == 0 else workers[::-1]
                for worker in order:
                    found[test][worker.engine].append(worker.ask(test, tokens=tokens))
        memory = {worker.engine: worker.ask("peak_bytes") for worker in workers}
        results: dict[str, Any] = {"first_token_seconds": first_token, "peak_bytes": memory}
        if names[0] == "hotset":
            results["memory_gb_per_second"] = round(workers[0].ask("memory_bandwidth"), 1)
    for test, figures in found.items():
        results[test] = {"tokens": tests[test], **{name: summary(values) for name, values in figures.items()}}
        if len(names) == 2:
            results[test]["ratio"] = pairwise(figures[names[0]], figures[names[1]])
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure Hotset and llama.cpp in turn on the same files.")
    parser.add_argument(
        "--model", type=Path, action="append", required=True, help="GGUF file; may be repeated"
    )
    parser.add_argument("--threads", type=int, action="append", help="may be repeated (default: 2)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512, help="prompt tokens; 0: no such test")
    parser.add_argument("--decode", type=int, default=128, help="decoded tokens; 0: no such test")
    parser.add_argument("--only", choices=PEERS, help="measure one engine alone")
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    names = (args.only,) if args.only else PEERS
    tests = {"decode": args.decode, "prefill": args.prefill}
    tests = {name: tokens for name, tokens in tests.items() if tokens > 0}
    results = []
    for model in args.model:
        if not model.is_file():
            return fail("peers", f"{model}: no such file")
        identity = model_identity(model)
        print(f"{identity['file']}{' (synthetic random weights)' if identity['synthetic'] else ''}")
        for threads in args.threads or [2]:
            try:
                figures = compare(model, threads, tests, args.pairs, names)
            except RuntimeError as error:
                return fail("peers", str(error))
            results.append({"model": identity, "threads": threads, **figures})
            if "memory_gb_per_second" in figures:
                print(f"  {threads} threads  memory   {figures['memory_gb_per_second']} GB/s")
            for test in tests:
                row = "  ".join(f"{name} {span(figures[test][name])} tok/s" for name in names)
                ratio = f"  ratio {span(figures[test]['ratio'], 2)}" if "ratio" in figures[test] else ""
                print(f"  {threads} threads  {test:7}  {row}{ratio}", flush=True)
    if args.json:
        write_json(args.json, report("peers", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
