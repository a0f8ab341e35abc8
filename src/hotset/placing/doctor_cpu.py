"""The processor's part of `hotset doctor`: Hotset's own kernels on layers of a 7B model's size.

Their weights are random, and more than caches hold.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from hotset.backends.contract import (
    F32,
    FFN,
    BatchView,
    FFNSpec,
    Linear,
    NeuronFFNSpec,
    Norm,
    StateShape,
)
from hotset.backends.cpu import CpuBackend, CpuNeuronFFN, cache_bytes
from hotset.core.batch import Batch
from hotset.core.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.formats.tensor import TensorType, tensor_from_array
from hotset.placing.random_weights import random_weights

_HIDDEN, _FFN, _WIDTH = 4096, 11008, 32
"""A 7B model's hidden size and neurons; and the width of the predictor that chooses neurons at random."""
_DENSITY = 0.1
"""Share of neurons chosen while gathering is measured."""
_LAYERS, _MOST_LAYERS = 3, 24
"""At least and at most so many layers take turns, so that caches do not hold them."""
_CALLS = 24
_PROMPT = 64
"""Tokens at a time while multiplications are counted."""


@dataclass(frozen=True)
class Gathered:
    """What the processor reads, GB/s."""

    stream: float
    gather: float
    gather_f16: float


class CpuBench:
    """Layers with random weights, and what is measured with them."""

    def __init__(self, done: Callable[[], None] = lambda: None, threads: int | None = None) -> None:
        self.backend = CpuBackend(threads=threads)
        rng = np.random.default_rng(0)
        self._inputs = [rng.standard_normal((1, _HIDDEN), dtype=np.float32) for _ in range(13)]
        self._norm = Norm(NormKind.RMS, 1e-5, np.ones(_HIDDEN, np.float32))
        self._fc = (
            tensor_from_array("fc1", rng.standard_normal((_WIDTH, _HIDDEN)) / _HIDDEN**0.5),
            tensor_from_array("fc2", rng.standard_normal((_FFN, _WIDTH)) / _WIDTH**0.5),
        )
        scores = np.concatenate(self._inputs) @ self._fc[0].to_float32().T @ self._fc[1].to_float32().T
        self._cutoff = float(np.quantile(scores, 1 - _DENSITY))
        self._chosen = {}
        layer_bytes = 3 * _HIDDEN * _FFN * TensorType.Q4_0.block_bytes // TensorType.Q4_0.block_size
        n_layers = min(max(_LAYERS, 3 * cache_bytes() // layer_bytes), _MOST_LAYERS)
        for kind in (TensorType.Q4_0, TensorType.F16):
            rows = Linear(random_weights(kind, _FFN, _HIDDEN, rng))
            self._chosen[kind] = [self._sparse(rows) for _ in range(n_layers)]
            done()
        gate, down = (
            random_weights(TensorType.Q4_0, _FFN, _HIDDEN, rng),
            random_weights(TensorType.Q4_0, _HIDDEN, _FFN, rng),
        )
        spec = FFNSpec(self._norm, Linear(gate), Linear(gate), Linear(down), Activation.SILU)
        self._dense: list[FFN] = [self.backend.ffn(spec) for _ in range(n_layers)]
        self._dense_bytes = 2 * gate.nbytes + down.nbytes
        done()

    def rates(self) -> Gathered:
        """Streaming and gathering."""
        stream = self.backend.memory_bandwidth()
        return Gathered(stream, self._gather(TensorType.Q4_0, stream), self._gather(TensorType.F16, stream))

    def dense(self) -> float:
        """GB/s of weights that a whole FFN in Q4_0 reads for one token."""
        return self._dense_bytes / _seconds(self._dense, self._inputs) / 1e9

    def part_us(self) -> float:
        """Microseconds of an FFN of almost no weights."""
        rng = np.random.default_rng(1)
        matrix = Linear(random_weights(TensorType.F16, 64, 64, rng))
        norm = Norm(NormKind.RMS, 1e-5, np.ones(64, np.float32))
        tiny = self.backend.ffn(FFNSpec(norm, matrix, matrix, matrix, Activation.SILU))
        return _seconds([tiny], [x[:, :64].copy() for x in self._inputs]) * 1e6

    def tflops(self) -> float:
        """Of a whole FFN in Q4_0 over some tokens of a prompt."""
        prompt = np.repeat(np.concatenate(self._inputs), _PROMPT // len(self._inputs) + 1, axis=0)[:_PROMPT]
        seconds = _seconds(self._dense[:1], [prompt], calls=2)
        return 2 * 3 * _HIDDEN * _FFN * _PROMPT / seconds / 1e12

    def _sparse(self, rows: Linear) -> CpuNeuronFFN:
        plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK, self._cutoff)
        predictor = (Linear(self._fc[0]), Linear(self._fc[1]))
        # SiLU is never zero: all rows of every chosen neuron are read.
        spec = NeuronFFNSpec(self._norm, rows, rows, rows, Activation.SILU, plan, predictor)
        return self.backend.neuron_ffn(spec)

    def _gather(self, kind: TensorType, stream: float) -> float:
        layers = self._chosen[kind]
        shape = StateShape(1, 1, 32, (self._cutoff,))
        sequence = self.backend.sequence(shape, 1, "f16")
        view = self.backend.view(Batch.of(sequence, np.zeros(1, np.int32)))
        seconds = _seconds(list(layers), self._inputs, view=view)
        (chooser,) = sequence.choosers
        assert chooser is not None
        nbytes = chooser.work.read / chooser.work.rows * 3 * _HIDDEN // kind.block_size * kind.block_bytes
        predictor = sum(tensor.nbytes for tensor in self._fc)
        return nbytes / max(seconds - predictor / stream / 1e9, seconds / 2) / 1e9


def _seconds(layers: list[FFN], inputs: list[F32], calls: int = _CALLS, view: BatchView = None) -> float:
    """Median time of a call; layers take turns, and the first round is not counted."""
    times = []
    for i in range(-len(layers), calls):
        x = inputs[i % len(inputs)]
        out = np.zeros_like(x)
        start = time.perf_counter()
        layers[i % len(layers)].forward(x, out, view)
        if i >= 0:
            times.append(time.perf_counter() - start)
    return median(times)
