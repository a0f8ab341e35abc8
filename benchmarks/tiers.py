"""Decoding a mixture of experts whose experts have less memory than they take, against all of them in memory.

Every measurement is a fresh process: it loads the model, decodes random tokens once, so that memory holds
what it may, and then the same tokens again, timed. Budgets alternate, with the file in the page cache as far
as the machine has room. Memory is the largest resident set of the process over its whole life, over what was
touched: the weights that every token reads, the experts that are packed and the KV cache.

    python benchmarks/synthetic.py qwen3-30b-a3b --type q4_k --layers 33 --router skewed --out skewed.gguf
    python benchmarks/tiers.py --model skewed.gguf --ram 6GiB --json result.json
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import fail, model_identity, pairwise, report, span, summary, write_json

from hotset.cli.options import ram_bytes
from hotset.core.batch import Batch
from hotset.core.errors import HotsetError
from hotset.serve.load import load_model
from hotset.state.kv_types import kv_cache_bytes

OPENING = 8
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of what the system counts resident memory in."""


def decode(path: Path, ram: int | None, tokens: int, threads: int) -> dict[str, Any]:
    """Load, read a few tokens, decode twice; in a process of its own."""
    start = time.perf_counter()
    model = load_model(path, threads=threads, ram=ram)
    context = OPENING + tokens
    sequence = model.sequence(context)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, context).astype(np.int32)
    first = seconds = 0.0
    packs = 0
    for _ in range(2):
        sequence.rewind(0)
        model.transformer.forward(Batch.of(sequence, ids[:OPENING], lossless=True))
        first = first or time.perf_counter() - start
        packs, seconds = model.backend.packed_experts.packs, time.perf_counter()
        for i in range(OPENING, context):
            model.transformer.forward(Batch.of(sequence, ids[i : i + 1]))
        seconds = time.perf_counter() - seconds
    packed = model.backend.packed_experts
    touched = model.traffic.weights - model.traffic.experts + packed.nbytes
    touched += kv_cache_bytes(model.config, context, "f16")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    return {
        "first_token_seconds": first,
        "tokens_per_second": tokens / seconds,
        "packs_per_token": (packed.packs - packs) / tokens,
        "packed_bytes": packed.nbytes,
        "peak_bytes": peak,
        "bytes_over": peak - touched,
    }


def alone(path: Path, ram: int | None, tokens: int, threads: int) -> dict[str, Any]:
    """`decode` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(decode, (path, ram, tokens, threads))


def main() -> int:
    parser = argparse.ArgumentParser(description="Decode with experts in memory and in the file.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file of a mixture of experts")
    parser.add_argument("--ram", default="6GiB", help="the experts' budget")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        budgets = {"all": None, args.ram: ram_bytes(args.ram)}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in budgets}
        for pair in range(args.pairs):
            for name in list(budgets) if pair % 2 == 0 else list(budgets)[::-1]:
                found[name].append(alone(args.model, budgets[name], args.tokens, args.threads))
    except HotsetError as error:
        return fail("tiers", str(error))
    results: dict[str, Any] = {"model": model_identity(args.model)}
    print(f"{results['model']['name']}, {results['model']['bytes'] / 1e9:.1f} GB")
    for name, runs in found.items():
        figures = {key: summary([run[key] for run in runs]) for key in runs[0]}
        results[name] = figures
        print(
            f"  {name:8} {span(figures['tokens_per_second'], 2)} tokens/s, "
            f"{figures['packs_per_token']['median']:.0f} experts packed a token, "
            f"first token {span(figures['first_token_seconds'])} s, "
            f"memory {figures['peak_bytes']['median'] / 1e9:.2f} GB, "
            f"{figures['bytes_over']['max'] / 1e6:.0f} MB over what was touched"
        )
    every, few = ([run["tokens_per_second"] for run in runs] for runs in found.values())
    results["ratio"] = pairwise(few, every)
    print(f"  ratio    {span(results['ratio'], 2)}")
    if args.json:
        write_json(args.json, report("tiers", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
