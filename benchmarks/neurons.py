"""How fast rows of chosen neurons are read: against the memory's bandwidth, and against a dense FFN.

Layers of a Llama-2-7B's size with random weights (synthetic), called in turn with random inputs; so many
that no cache holds all their hot neurons from one turn to the next. Which neurons are chosen is given, as
scores; the activation is never zero, so that every chosen neuron is computed whole: gate, up and down
(ungated: up and down). Neurons are drawn in two ways, at the same densities: all alike (uniform), or by the
power law of `sparse_models.py` with the hottest neurons first, as models fire and `hotset convert` stores
them. Where a density is too high for that law, the hottest are drawn as often as it allows.

The kernel's time is that of a call less that of a call with no neuron chosen (norm, packing of x, scanning
the scores); its bytes are those of the rows. In each round, streaming through memory (the best of five
passes) comes just before and just after the calls (the best of five batches); the share is of their mean.
Machines change their pace within a second: where the two differ by more than a tenth, the round is made
again. Then comes an ordinary dense FFN of the same weights. Figures are medians over rounds. The break-even
density is where a whole call takes as long as the dense FFN's.

    python benchmarks/neurons.py --json result.json
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import numpy as np
from machine import report, write_json
from sparse_models import HOT_SHARE, probabilities
from synthetic import random_blocks

from hotset.backends.alone import view_alone
from hotset.backends.contract import F32, FFNSpec, Linear, NeuronFFNSpec, Norm
from hotset.backends.cpu import CpuBackend
from hotset.core.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.formats.tensor import Tensor, TensorType

HIDDEN, FFN_SIZE = 4096, 11008
TYPES = (TensorType.Q4_0, TensorType.Q4_1, TensorType.Q8_0, TensorType.F16)
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
BATCHES = 5
MOST_ATTEMPTS = 4  # at a round
UNIFORM, POWER_LAW = "uniform", "power law"


def tensor(name: str, type: TensorType, rows: int, cols: int, rng: np.random.Generator) -> Tensor:
    """Random weights."""
    blocks = random_blocks(type, cols, rows * cols // type.block_size, rng)
    return Tensor(name, type, (rows, cols), np.ascontiguousarray(blocks).reshape(-1))


def seconds(call: Callable[[int], object], calls: int) -> float:
    """Mean time of a call in the best of a few batches, which `memory_bandwidth` has passes for."""
    times = []
    for batch in range(BATCHES):
        start = time.perf_counter()
        for i in range(batch * calls, (batch + 1) * calls):
            call(i)
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
    normal = rng.standard_normal((len(inputs), FFN_SIZE), dtype=np.float32)
    plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK, cutoff=0.5)
    gate = Linear(tensor("gate", type, FFN_SIZE, HIDDEN, rng)) if gated else None
    up = Linear(tensor("up", type, FFN_SIZE, HIDDEN, rng))
    down_t = Linear(tensor("down_t", type, FFN_SIZE, HIDDEN, rng))
    down = Linear(tensor("down", type, HIDDEN, FFN_SIZE, rng))
    sparse_spec = NeuronFFNSpec(norm, gate, up, down_t, Activation.SILU, plan)
    dense_spec = FFNSpec(norm, gate, up, down, Activation.SILU)
    view = view_alone(backend, 1, [plan.cutoff])
    # The same numbers, but memory of their own.
    sparse = [backend.neuron_ffn(sparse_spec, scores_given=True) for _ in range(n_layers)]
    dense = [backend.ffn(dense_spec) for _ in range(n_layers)]
    row_bytes = HIDDEN // type.block_size * type.block_bytes * (3 if gated else 2)
    out = np.zeros((1, HIDDEN), np.float32)

    def of_sparse(scores: list[F32]) -> float:
        def call(i: int) -> None:
            sparse[i % n_layers].forward(inputs[i % len(inputs)], out, view, scores[i % len(inputs)])

        return seconds(call, calls)

    def of_dense() -> float:
        return seconds(lambda i: dense[i % n_layers].forward(inputs[i % len(inputs)], out, None), calls)

    nothing = [np.zeros((1, FFN_SIZE), np.float32)] * len(inputs)

    def row(drawn: str, density: float) -> dict[str, Any]:
        biased = normal + firing_bias(drawn, density, gated)
        cutoff = np.quantile(biased, 1 - density) if density < 1 else -np.inf
        scores = [(token > cutoff).astype(np.float32)[None] for token in biased]
        neurons = float(np.mean([chosen.sum() for chosen in scores]))
        touched = neurons * row_bytes / 1e9
        streams, whole, kernel, of_dense_time, shares = [], [], [], [], []
        for attempt in range(MOST_ATTEMPTS * rounds):
            before = backend.memory_bandwidth()
            of_call, of_nothing = of_sparse(scores), of_sparse(nothing)
            after = backend.memory_bandwidth()
            left = MOST_ATTEMPTS * rounds - attempt
            if abs(before - after) > 0.1 * before and left > rounds - len(whole):
                continue
            whole.append(of_call)
            kernel.append(of_call - of_nothing)
            streams.append((before + after) / 2)
            shares.append(touched / kernel[-1] / streams[-1])
            of_dense_time.append(of_call / of_dense())
            if len(whole) == rounds:
                break
        return {
            "density": neurons / FFN_SIZE,
            "microseconds": median(whole) * 1e6,
            "kernel_microseconds": median(kernel) * 1e6,
            "gb_per_second": touched / median(kernel),
            "streaming_gb_per_second": median(streams),
            "share_of_bandwidth": median(shares),
            "share_of_bandwidth_extremes": (min(shares), max(shares)),
            "share_of_bandwidth_of_the_call": median(
                touched / time / stream for time, stream in zip(whole, streams, strict=True)
            ),
            "of_dense_time": median(of_dense_time),
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
            f"  density {row['density']:.2f}  {row['kernel_microseconds']:7.0f} us  "
            f"{row['gb_per_second']:5.1f} GB/s  {row['share_of_bandwidth']:4.0%} of the bandwidth "
            f"({low:.0%}-{high:.0%})  the call {row['share_of_bandwidth_of_the_call']:.0%}, "
            f"{row['of_dense_time']:.2f} of dense",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the kernels over chosen neurons.")
    parser.add_argument("--type", choices=[type.name.lower() for type in TYPES], action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16, help="layers in turn, so that caches do not help")
    parser.add_argument("--calls", type=int, default=16, help="calls a batch")
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
