"""Decoding that skips neurons against dense decoding, on synthetic models whose neurons fire by a power law.

One file by neuron (`sparse_models.py`) serves Hotset's ways; a plain file of the same shape and type
(`synthetic.py`) serves llama.cpp and Hotset's ordinary dense FFN. All are measured in turn, each in a
process of its own; ratios are taken round by round. A token's bytes are those that the way has to read, at
the density measured.

    python benchmarks/sparse.py --sparse 7b-reglu-Q4_0.gguf --plain llama-2-7b-Q4_0.gguf --json result.json
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engines import Worker
from machine import fail, model_identity, pairwise, report, span, summary, write_json

WAYS = {"dense": "hotset-dense", "exact": "hotset-exact", "predictor": "hotset"}
"""Ways of the file by neuron, and the engines that run them."""
PEERS = {"plain": "hotset", "llama.cpp": "llama.cpp"}
"""What runs the plain file: Hotset's ordinary dense FFN, and llama.cpp."""


def compare(
    sparse: Path, plain: Path, ways: list[str], threads: int, rounds: int, tokens: int
) -> dict[str, Any]:
    """Decode rates of every way and peer, `rounds` times in turn after an unrecorded round."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(engine, path, threads, tokens + 32))
            for path, engines in ((sparse, {way: WAYS[way] for way in ways}), (plain, PEERS))
            for name, engine in engines.items()
        }
        for worker in workers.values():
            worker.ask("decode", tokens=tokens)  # which packs experts
        for number in range(rounds):
            for name in list(workers) if number % 2 == 0 else list(workers)[::-1]:
                found.setdefault(name, []).append(workers[name].ask("decode", tokens=tokens))
        bandwidth = workers["plain"].ask("memory_bandwidth")
        densities = {way: workers[way].ask("density") for way in ways}
    results: dict[str, Any] = {"memory_gb_per_second": round(bandwidth, 1), "threads": threads}
    for name, values in found.items():
        results[name] = {"decode": summary(values)}
        if name in ways:
            gigabytes = bytes_per_token(sparse, name, densities[name]) / 1e9
            results[name] |= {
                "density": densities[name],
                "gb_per_token": gigabytes,
                "share_of_bandwidth": gigabytes * results[name]["decode"]["median"] / bandwidth,
                **{f"over {peer}": pairwise(values, found[peer]) for peer in PEERS},
            }
    return results


def bytes_per_token(model: Path, way: str, density: float) -> float:
    """Bytes of weights that one token reads, every layer computing the share `density` of its neurons."""
    from hotset.core.config import Way
    from hotset.formats import open_checkpoint
    from hotset.model.reading import Neurons, traffic
    from hotset.serve.load import with_plan

    found = traffic(with_plan(open_checkpoint(model), None if way == "predictor" else Way(way)))
    computed = density * found.ffn_size
    return found.bytes_per_token([Neurons(computed, computed)] * len(found.by_neuron))


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure ways of skipping neurons and dense engines in turn."
    )
    parser.add_argument("--sparse", type=Path, required=True, help="GGUF of sparse_models.py")
    parser.add_argument("--plain", type=Path, required=True, help="GGUF of synthetic.py, same shape and type")
    parser.add_argument("--way", choices=list(WAYS), action="append", help="may be repeated (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=48, help="tokens a measurement")
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    for path in (args.sparse, args.plain):
        if not path.is_file():
            return fail("sparse", f"{path}: no such file")
    ways = args.way or list(WAYS)
    try:
        results = compare(args.sparse, args.plain, ways, args.threads, args.rounds, args.decode)
    except RuntimeError as error:
        return fail("sparse", str(error))
    print(f"{args.sparse.name}, synthetic weights, {args.threads} threads")
    for name in (*ways, *PEERS):
        row = results[name]
        text = f"  {name:10} {span(row['decode'])} tok/s"
        if name in ways:
            text += f"  density {row['density']:.3f}  {row['share_of_bandwidth']:.0%} of the bandwidth"
            text += "".join(f"  {span(row[f'over {peer}'], 2)} of {peer}" for peer in PEERS)
        print(text)
    if args.json:
        results["models"] = [model_identity(path) for path in (args.sparse, args.plain)]
        write_json(args.json, report("sparse", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
