"""How fast rows of chosen neurons are read: against the memory's bandwidth, and against a dense FFN.

Layers of a Llama-2-7B's size with random weights (synthetic), more than caches hold, called in turn with
random inputs. A predictor of little width chooses the neurons; the activation is never zero, so that every
chosen neuron is computed whole: gate, up and down (ungated: up and down). Neurons are drawn in two ways, at
the same densities: all alike (uniform), or by the power law of `sparse_models.py` with the hottest neurons
first, as models fire and `hotset convert` stores them. Where a density is too high for that law, the hottest
are drawn as often as it allows. Bytes are those of the rows and the predictor. Rounds alternate between
streaming (the best of five passes over memory), chosen neurons and an ordinary dense FFN of the same weights
(the best of five batches of calls each); ratios are medians over rounds. The break-even density is where a
call takes as long as the dense FFN's.

    python benchmarks/neurons.py --json result.json
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import numpy as np
from machine import report, write_json
from sparse_models import HOT_SHARE, probabilities
from synthetic import random_blocks

from hotset.backends.base import F32, FFN, FFNSpec, Linear, NeuronFFNSpec, Norm
from hotset.backends.cpu import CpuBackend
from hotset.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array

HIDDEN, FFN_SIZE, WIDTH = 4096, 11008, 32
TYPES = (TensorType.Q4_0, TensorType.Q4_1, TensorType.Q8_0, TensorType.F16)
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
BATCHES = 5
UNIFORM, POWER_LAW = "uniform", "power law"


def tensor(name: str, type: TensorType, rows: int, cols: int, rng: np.random.Generator) -> Tensor:
    """Random weights."""
    blocks = random_blocks(type, cols, rows * cols // type.block_size, rng)
    return Tensor(name, type, (rows, cols), np.ascontiguousarray(blocks).reshape(-1))


def seconds(layers: list[FFN], inputs: list[F32], calls: int) -> float:
    """Mean time of a call in the best of a few batches, which `memory_bandwidth` has passes for."""
    out = np.zeros((1, HIDDEN), np.float32)
    times = []
    for batch in range(BATCHES):
        start = time.perf_counter()
        for i in range(batch * calls, (batch + 1) * calls):
            layers[i % len(layers)].forward(inputs[i % len(inputs)], out)
        times.append((time.perf_counter() - start) / calls)
    return min(times)


def firing_bias(drawn: str, density: float, gated: bool) -> F32:
    """What to add to neurons' normal scores so that, above one cut-off, they are drawn as asked."""
    if drawn == UNIFORM or density == 1:
        return np.zeros(FFN_SIZE, np.float32)
    often = probabilities(FFN_SIZE, density, HOT_SHARE[gated])
    return np.array([NormalDist().inv_cdf(p) for p in often], np.float32)


def measure(
    backend: CpuBackend, type: TensorType, gated: bool, n_layers: int, calls: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """All densities for one type, drawn in either way."""
    rng = np.random.default_rng(0)
    norm = Norm(NormKind.RMS, 1e-5, np.ones(HIDDEN, np.float32))
    inputs = [rng.standard_normal((1, HIDDEN), dtype=np.float32) for _ in range(31)]
    fc1 = tensor_from_array("fc1", rng.standard_normal((WIDTH, HIDDEN)) / HIDDEN**0.5)
    fc2 = tensor_from_array("fc2", rng.standard_normal((FFN_SIZE, WIDTH)) / WIDTH**0.5)
    plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK)
    specs, dense = [], []
    for _ in range(n_layers):
        gate = Linear(tensor("gate", type, FFN_SIZE, HIDDEN, rng)) if gated else None
        up = Linear(tensor("up", type, FFN_SIZE, HIDDEN, rng))
        down_t = Linear(tensor("down_t", type, FFN_SIZE, HIDDEN, rng))
        down = Linear(tensor("down", type, HIDDEN, FFN_SIZE, rng))
        specs.append(NeuronFFNSpec(norm, gate, up, down_t, Activation.SILU, plan))
        dense.append(backend.ffn(FFNSpec(norm, gate, up, down, Activation.SILU)))
    normed = np.concatenate(inputs) / np.sqrt((np.concatenate(inputs) ** 2).mean(axis=1, keepdims=True))
    scores = normed @ fc1.to_float32().T @ fc2.to_float32().T
    row_bytes = HIDDEN // type.block_size * type.block_bytes * (3 if gated else 2)

    def row(drawn: str, density: float) -> dict[str, Any]:
        bias = firing_bias(drawn, density, gated)
        cutoff = float(np.quantile(scores + bias, 1 - density)) if density < 1 else -1e30
        asked = replace(plan, cutoff=cutoff)
        predictor = (Linear(fc1), Linear(fc2, bias))
        chosen = [backend.neuron_ffn(replace(spec, plan=asked, predictor=predictor)) for spec in specs]
        streams, of_chosen, of_dense = [], [], []
        for _ in range(rounds):
            streams.append(backend.memory_bandwidth())
            of_chosen.append(seconds(list(chosen), inputs, calls))
            of_dense.append(seconds(list(dense), inputs, calls))
        counts = [layer.counts() for layer in chosen]
        neurons = sum(count.read for count in counts) / sum(count.tokens for count in counts)
        touched = (neurons * row_bytes + fc1.nbytes + fc2.nbytes) / 1e9
        shares = [touched / time / stream for time, stream in zip(of_chosen, streams, strict=True)]
        return {
            "density": neurons / FFN_SIZE,
            "microseconds": median(of_chosen) * 1e6,
            "gb_per_second": touched / median(of_chosen),
            "streaming_gb_per_second": median(streams),
            "share_of_bandwidth": median(shares),
            "share_of_bandwidth_extremes": (min(shares), max(shares)),
            "of_dense_time": median(a / b for a, b in zip(of_chosen, of_dense, strict=True)),
        }

    for drawn in (UNIFORM, POWER_LAW):
        rows = [row(drawn, density) for density in DENSITIES]
        yield {
            "type": type.name,
            "gated": gated,
            "drawn": drawn,
            "break_even_density": break_even([(row["density"], row["of_dense_time"]) for row in rows]),
            "densities": rows,
        }


def break_even(points: list[tuple[float, float]]) -> float:
    """The density at which the time reaches the dense FFN's, interpolated; 1 if it never does."""
    for (d0, t0), (d1, t1) in pairwise(points):
        if t0 < 1 <= t1:
            return d0 + (d1 - d0) * (1 - t0) / (t1 - t0)
    return 1.0 if points[-1][1] < 1 else points[0][0]


def print_table(found: dict[str, Any]) -> None:
    print(
        f"{found['type']} {'gated' if found['gated'] else 'ungated'}, drawn: {found['drawn']}: "
        f"break-even {found['break_even_density']:.2f}"
    )
    for row in found["densities"]:
        low, high = row["share_of_bandwidth_extremes"]
        print(
            f"  density {row['density']:.2f}  {row['microseconds']:7.0f} us  "
            f"{row['gb_per_second']:5.1f} GB/s  {row['share_of_bandwidth']:4.0%} of the bandwidth "
            f"({low:.0%}-{high:.0%})  {row['of_dense_time']:.2f} of dense",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the kernels over chosen neurons.")
    parser.add_argument("--type", choices=[type.name.lower() for type in TYPES], action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4, help="layers in turn, so that caches do not help")
    parser.add_argument("--calls", type=int, default=12, help="calls a batch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds a figure")
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    backend = CpuBackend(threads=args.threads)
    results = []
    for type in TYPES:
        if args.type and type.name.lower() not in args.type:
            continue
        for gated in (True, False):
            for found in measure(backend, type, gated, args.layers, args.calls, args.rounds):
                results.append(found)
                print_table(found)
    if args.json:
        write_json(args.json, report("neurons", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
