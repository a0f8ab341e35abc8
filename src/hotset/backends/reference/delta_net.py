"""The gated delta net, position by position."""

import numpy as np

from hotset.backends.contract import F32, DeltaNetSpec
from hotset.backends.maths import normalise, sigmoid, silu, softplus
from hotset.backends.reference.linear import ReferenceLinear
from hotset.backends.reference.state import RecurrentState, own_sequence
from hotset.core.batch import Batch


class ReferenceDeltaNet:
    """A gated delta net in NumPy."""

    def __init__(self, spec: DeltaNetSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self._qkv, self._z = ReferenceLinear(spec.qkv), ReferenceLinear(spec.z)
        self._beta, self._alpha = ReferenceLinear(spec.beta), ReferenceLinear(spec.alpha)
        self._output = ReferenceLinear(spec.output)

    def forward(self, x: F32, out: F32, view: Batch) -> None:
        spec, shape = self.spec, self.spec.shape
        n = normalise(x, spec.norm)
        u = self._qkv(n)
        beta = sigmoid(self._beta(n))
        decay = np.exp(spec.decay * softplus(self._alpha(n) + spec.dt_bias))
        y = np.empty((len(x), shape.n_value_heads, shape.head_dim), np.float32)
        for span, rows in view.rows():
            sequence = own_sequence(span.sequence)
            state = sequence.states[self.index].copy()
            for row in range(rows.start, rows.stop):
                y[row] = self._step(state, u[row], beta[row], decay[row])
            sequence.next_states[self.index] = state
        z = self._z(n).reshape(y.shape)
        out += self._output((normalise(y, spec.out_norm) * silu(z)).reshape(len(x), -1))

    def _step(self, state: RecurrentState, u: F32, beta: F32, decay: F32) -> F32:
        """One position: u (C,), beta and decay (H,), to (H, d). The state becomes that after it."""
        shape = self.spec.shape
        inputs = np.concatenate([state.inputs, u[None]])
        state.inputs = inputs[1:]
        mixed = silu((inputs.T * self.spec.conv).sum(axis=1, dtype=np.float32))
        keys, d = shape.n_key_heads, shape.head_dim
        q, k, v = np.split(mixed.reshape(-1, d), [keys, 2 * keys])
        group = shape.n_value_heads // keys
        heads = np.tile(np.arange(keys), group) if shape.tiled else np.arange(keys).repeat(group)
        q, k = _unit(q)[heads] / np.float32(d**0.5), _unit(k)[heads]
        s = state.sums
        s *= decay[:, None, None]
        error = beta[:, None] * (v - np.einsum("hkv,hk->hv", s, k))
        s += k[:, :, None] * error[:, None, :]
        y: F32 = np.einsum("hkv,hk->hv", s, q)
        return y


def _unit(x: F32) -> F32:
    """Vectors divided by their length."""
    y: F32 = x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + np.float32(1e-6))
    return y
