"""Mamba-2, position by position."""

from dataclasses import replace

import numpy as np

from hotset.backends.contract import F32, MambaSpec
from hotset.backends.maths import normalise, silu, softplus
from hotset.backends.reference.linear import ReferenceLinear
from hotset.backends.reference.state import RecurrentState, own_sequence
from hotset.core.batch import Batch


class ReferenceMamba:
    """A Mamba-2 mixer in NumPy."""

    def __init__(self, spec: MambaSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self._input, self._output = ReferenceLinear(spec.input), ReferenceLinear(spec.output)

    def forward(self, x: F32, out: F32, view: Batch) -> None:
        spec, shape = self.spec, self.spec.shape
        values = shape.values
        z, u, steps = np.split(
            self._input(normalise(x, spec.norm)), [values, values + shape.channels], axis=1
        )
        steps = softplus(steps + spec.dt_bias)
        y = np.empty((len(x), values), np.float32)
        for span, rows in view.rows():
            sequence = own_sequence(span.sequence)
            state = sequence.states[self.index].copy()
            for row in range(rows.start, rows.stop):
                y[row] = self._step(state, u[row], steps[row]).reshape(-1)
            sequence.next_states[self.index] = state
        grouped = (y * silu(z)).reshape(len(x), shape.n_groups, -1)
        ones = np.ones(grouped.shape[2], np.float32)
        normed = normalise(grouped, replace(spec.out_norm, weight=ones)).reshape(y.shape)
        out += self._output(normed * spec.out_norm.weight)

    def _step(self, state: RecurrentState, u: F32, step: F32) -> F32:
        """One position: u (C,) and steps (H,), to (H, d). The state becomes that after it."""
        spec, shape = self.spec, self.spec.shape
        inputs = np.concatenate([state.inputs, u[None]])
        state.inputs = inputs[1:]
        mixed = silu((inputs.T * spec.conv).sum(axis=1, dtype=np.float32) + spec.conv_bias)
        v = mixed[: shape.values].reshape(shape.n_heads, -1)
        k, q = (
            part.reshape(shape.n_groups, -1).repeat(shape.n_heads // shape.n_groups, axis=0)
            for part in np.split(mixed[shape.values :], 2)
        )
        s = state.sums
        s *= np.exp(step * spec.decay)[:, None, None]
        s += k[:, :, None] * (step[:, None] * v)[:, None, :]
        y: F32 = np.einsum("hkv,hk->hv", s, q) + spec.skip[:, None] * v
        return y
