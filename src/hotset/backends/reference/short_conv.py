"""The gated short convolution."""

import numpy as np

from hotset.backends.contract import F32, ShortConvSpec
from hotset.backends.maths import normalise
from hotset.backends.reference.linear import ReferenceLinear
from hotset.backends.reference.state import RecurrentState, own_sequence
from hotset.core.batch import Batch


class ReferenceShortConv:
    """A gated short convolution in NumPy."""

    def __init__(self, spec: ShortConvSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self._input, self._output = ReferenceLinear(spec.input), ReferenceLinear(spec.output)

    def forward(self, x: F32, out: F32, view: Batch) -> None:
        before, after, inputs = np.split(self._input(normalise(x, self.spec.norm)), 3, axis=1)
        inputs = before * inputs
        y = np.empty_like(inputs)
        kernel = self.spec.shape.kernel
        for span, rows in view.rows():
            sequence = own_sequence(span.sequence)
            state = sequence.states[self.index]
            reached = np.concatenate([state.inputs, inputs[rows]])
            windows = np.lib.stride_tricks.sliding_window_view(reached, kernel, axis=0)
            y[rows] = (windows * self.spec.conv).sum(axis=2, dtype=np.float32)
            sequence.next_states[self.index] = RecurrentState(state.sums, reached[-(kernel - 1) :])
        out += self._output(after * y)
