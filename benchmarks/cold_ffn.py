"""What a task of the host's in a hybrid step takes: a fixed part, and so much for each cold neuron.

Layers of a Llama-2-7B's size with random weights (synthetic), of which the last 9,984 of 11,008 neurons are
cold; some of these are chosen, by bits, as a device sends them. A step has as many tasks as that model has
layers, each for one of a few in turn, whose packets are there when it begins: take x and the bits, pack x,
compute, answer. Its time over the number of tasks is a task's. The line a + b n is fitted to the medians
(least squares).

With --prefetch, a step has one task, and a share of its neurons is fetched into the caches before it, with a
pause after that, in which a device would attend: so much is left of the task where attention is long enough.

    python benchmarks/cold_ffn.py --threads 1,2,4,8
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import report, write_json
from neurons import FFN_SIZE, HIDDEN, tensor
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.contract import F32, Linear, NeuronFFNSpec, Norm, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.formats.tensor import TensorType
from hotset.hybrid.device import chosen_words

COLD = FFN_SIZE - 1024
CHOSEN = (0, 50, 200, 600)
SHARES = (0.0, 0.5, 0.9, 1.0)
TASKS = 32
"""Of a step."""


class Tasks:
    """The tasks of a step, for so many layers in turn, and a task to fetch the neurons of each."""

    def __init__(self, threads: int, layers: int, tasks: int) -> None:
        rng = np.random.default_rng(0)
        self.backend = CpuBackend(threads=threads)
        plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK, cutoff=0.5)
        matrices = [Linear(tensor(name, TensorType.Q4_0, COLD, HIDDEN, rng)) for name in ("g", "u", "d")]
        norm = Norm(NormKind.RMS, 1e-5, np.ones(HIDDEN, np.float32))
        spec = NeuronFFNSpec(norm, *matrices, Activation.SILU, plan)
        ffns = [self.backend.neuron_ffn(spec, scores_given=True) for _ in range(layers)]
        self.ffns = [ffns[i % layers] for i in range(tasks)]
        self.worker, self.fetchers = _native.HostWorker(), [_native.HostWorker() for _ in range(tasks)]
        self.x = rng.standard_normal((1, HIDDEN), dtype=np.float32)
        width = chosen_words(COLD)
        self.asked = np.zeros((tasks, 1, HIDDEN), np.uint64)
        self.bits = np.zeros((tasks, 2, 1, width), np.uint64)
        self.never = np.zeros((1, width), np.uint64)
        self.room: list[Any] = []
        for i, ffn in enumerate(self.ffns):
            x, out = np.zeros((2, 1, HIDDEN), np.float32)
            chosen, early = np.zeros((2, 1, width), np.float32)
            cutoffs, answer = np.zeros(1, np.float32), np.zeros((1, HIDDEN), np.uint64)
            self.worker.task()
            self.worker.take(self.asked[i], x)
            self.worker.take_chosen(ffn.native, self.bits[i, 0], chosen, cutoffs)
            self.worker.zero(out)
            self.worker.neuron_ffn(ffn.native, x, out, chosen, cutoffs)
            self.worker.answer(out, answer)
            self.fetchers[i].task()
            self.fetchers[i].prefetch(ffn.native, self.bits[i, 1], early, cutoffs, self.never)
            self.room.append((x, out, chosen, early, cutoffs, answer))
        sequence = self.backend.sequence(StateShape(1, 1, 8, (0.5,)), 1 << 20, "f32")
        self.batch = self.backend.view(Batch.of(sequence, np.zeros(1, np.int32)))
        self.number = 0
        self.fetching = 0.0
        """Microseconds for which the last step's neurons were fetched."""

    def send(self, task: int, which: int, neurons: NDArray[np.int64]) -> None:
        """Write the bits of neurons to a task's packet of the present step."""
        bits = np.zeros(32 * (chosen_words(COLD) - COLD), np.bool_)
        bits[neurons] = True
        words: F32 = np.packbits(bits, bitorder="little").view(np.float32)[None]
        _native.write_packet(words, self.bits[task, which, :, : words.size], self.number)

    def step(self, rng: np.random.Generator, count: int, fetched: float = 0.0, pause: float = 0.0) -> float:
        """Microseconds a task with so many chosen; that share was fetched before, so many seconds ago."""
        self.number += 1
        chosen = [np.sort(rng.choice(COLD, count, replace=False)) for _ in self.ffns]
        for i, neurons in enumerate(chosen):
            _native.write_packet(self.x, self.asked[i], self.number)
            self.send(i, 0, neurons)
            self.send(i, 1, rng.permutation(neurons)[: int(fetched * count)])
        if fetched:
            self.fetching = sum(map(self.timed, self.fetchers))
        until = time.perf_counter() + pause
        while time.perf_counter() < until:
            pass
        return self.timed(self.worker) / len(self.ffns)

    def timed(self, worker: _native.HostWorker) -> float:
        """Microseconds of a step."""
        start = time.perf_counter()
        worker.begin(self.batch, self.number)
        if error := worker.finish():
            raise RuntimeError(error)
        return (time.perf_counter() - start) * 1e6


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """a and b of a + b n."""
    b, a = np.polyfit([n for n, _ in points], [us for _, us in points], 1)
    return float(a), float(b)


def measure(threads: int, layers: int, steps: int) -> dict[str, Any]:
    """A line for so many threads."""
    tasks, rng = Tasks(threads, layers, TASKS), np.random.default_rng(1)
    points = []
    for count in CHOSEN:
        times = [tasks.step(rng, count) for _ in range(steps + 2)][2:]
        points.append((count, median(times)))
    a, b = line(points)
    return {"threads": threads, "us": dict(points), "fixed_us": a, "us_a_neuron": b}


def measure_prefetch(threads: int, steps: int, pause: float) -> dict[str, Any]:
    """One layer's task of 600 neurons with none, half, nine tenths and all of them fetched before."""
    tasks, rng = Tasks(threads, 1, 1), np.random.default_rng(1)
    times: dict[float, list[float]] = {share: [] for share in SHARES}
    fetching = []
    for _ in range(10 * steps):
        for share, of_share in times.items():
            of_share.append(tasks.step(rng, CHOSEN[-1], share, pause))
        fetching.append(tasks.fetching)
    medians = {share: median(of_share) for share, of_share in times.items()}
    return {"threads": threads, "us_with_share_fetched": medians, "us_to_fetch_all": median(fetching)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a host's task with cold neurons.")
    parser.add_argument("--threads", default="1,2,4", help="one after the other")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prefetch", action="store_true", help="what fetching before saves instead")
    parser.add_argument("--pause", type=float, default=100, help="microseconds between fetching and a task")
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    results = []
    for threads in map(int, args.threads.split(",")):
        if args.prefetch:
            results.append(measure_prefetch(threads, args.steps, args.pause / 1e6))
        else:
            results.append(measure(threads, args.layers, args.steps))
        print(results[-1], flush=True)
    if args.json:
        write_json(args.json, report("cold_ffn", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
