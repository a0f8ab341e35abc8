"""Predicted scores of an FFN's neurons, and the activations that say exactly which are not zero."""

from typing import Any

from hotset.backends.blocks import dequantise, round_to_nearest
from hotset.backends.checks import check_exact
from hotset.backends.contract import NeuronFFNSpec
from hotset.backends.gpu.device import Gpu
from hotset.backends.gpu.ffn import GpuNorm
from hotset.backends.gpu.layouts import layout, two_bit_layout
from hotset.backends.gpu.matrix import Matrix, build_matrix
from hotset.core.config import Activation, Score
from hotset.core.errors import CheckpointError
from hotset.formats.tensor import TensorType


class GpuPredictor:
    """What a plan of `Way.PREDICTOR` scores neurons with; see `hotset.core.config.Score`."""

    def __init__(self, gpu: Gpu, spec: NeuronFFNSpec) -> None:
        hidden, size = spec.norm.weight.size, spec.up.weight.shape[0]
        self.gpu, self.size = gpu, size
        self.norm = None if spec.plan.raw_input else GpuNorm(gpu, spec.norm, hidden)
        self._rectified = spec.plan.score is Score.LOW_RANK_RELU
        self._low: Matrix | None = None
        if spec.plan.score in (Score.LOW_RANK, Score.LOW_RANK_RELU):
            fc1, fc2 = spec.predictor
            width = fc1.weight.shape[0]
            self._low = build_matrix(gpu, fc1, width, hidden)
            self._last = build_matrix(gpu, fc2, size, width)
        else:
            self._last = _gate_copy(gpu, spec)

    def scores(self, x: Any) -> Any:
        """Scores (T, F) of the FFN's input x (T, D), before its norm."""
        n = self.norm.input(x) if self.norm else x
        if self._low:
            low = self.gpu.scratch("low", len(x), self._low.rows)
            self._low.times(n, low, relu=self._rectified)
            n = low
        scores = self.gpu.scratch("scores", len(x), self.size)
        self._last.times(n, scores)
        return scores


class GpuGates:
    """What `Way.EXACT` leaves out neurons by."""

    def __init__(self, gpu: Gpu, spec: NeuronFFNSpec) -> None:
        first, hidden, size = spec.gate or spec.up, spec.norm.weight.size, spec.up.weight.shape[0]
        check_exact(first.weight.name, spec.activation, spec.plan)
        self.gpu, self.size = gpu, size
        self.norm = GpuNorm(gpu, spec.norm, hidden)
        self._first = build_matrix(gpu, first, size, hidden)
        self._squared = spec.activation is Activation.RELU2

    def values(self, x: Any) -> Any:
        """Activations (T, F) of gate, or of up where there is none, of the FFN's input x (T, D)."""
        values = self.gpu.scratch("gates", len(x), self.size)
        self._first.times(self.norm.input(x), values, relu=True)
        if self._squared:
            values.mul_(values)
        return values


def _gate_copy(gpu: Gpu, spec: NeuronFFNSpec) -> Matrix:
    """The 2- or 4-bit copy of the gate, or of up where there is no gate."""
    first, score = spec.gate or spec.up, spec.plan.score
    weight, cols = first.weight, first.weight.shape[1]
    if score not in (Score.GATE_Q4, Score.GATE_Q2):
        raise CheckpointError(f"{weight.name}: its plan has no predictor")
    if cols % 32:
        raise CheckpointError(
            f"{weight.name}: {score.value}: expected rows of a multiple of 32 numbers, found {cols}"
        )
    values = dequantise(weight)
    if score is Score.GATE_Q2:
        return Matrix(gpu, two_bit_layout(gpu, values), first.bias)
    return Matrix(gpu, layout(gpu, round_to_nearest(weight.name, values, TensorType.Q4_0)), first.bias)
