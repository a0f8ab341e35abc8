"""A mixture of experts."""

import numpy as np

from hotset.backends.contract import F32, ExpertsSpec, Linear, SharedExpertSpec
from hotset.backends.maths import neurons, normalise, route, sigmoid
from hotset.backends.reference.ffn import ReferenceFFN
from hotset.backends.reference.linear import ReferenceLinear
from hotset.core.batch import Batch
from hotset.core.config import Activation


class ReferenceExperts:
    """Each expert for the rows that selected it; see `ExpertsSpec`."""

    def __init__(self, spec: ExpertsSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self._router = ReferenceLinear(spec.router)
        self._gate = _Stack(spec.gate) if spec.gate else None
        self._up = _Stack(spec.up)
        self._down = _Stack(spec.down)
        self._shared = _Shared(spec.shared, spec.activation) if spec.shared else None
        self._beside = ReferenceFFN(spec.beside) if spec.beside else None

    def route(self, x: F32) -> F32:
        return self._router(x)

    def forward(self, x: F32, out: F32, view: Batch | None = None, logits: F32 | None = None) -> None:
        self.add(x, out, self.select(x, logits))

    def select(self, x: F32, logits: F32 | None = None) -> F32:
        spec = self.spec
        if logits is None:
            logits = self._router(normalise(x, spec.router_norm or spec.norm))
        experts, weights = route(logits, spec.selection_bias, spec.shape)
        if spec.factors is not None:
            weights = weights * spec.factors[experts]
        selected = np.zeros_like(logits)
        np.put_along_axis(selected, experts, weights, axis=1)
        return selected

    def add(self, x: F32, out: F32, weights: F32) -> None:
        spec = self.spec
        n = normalise(x, spec.norm)
        y = np.zeros_like(n)
        selected = ~(weights <= 0)
        for expert in np.flatnonzero(selected.any(axis=0)).tolist():
            rows = np.flatnonzero(selected[:, expert])
            h = self._hidden(n[rows], expert)[1]
            down = self._down.of(expert)
            result = h @ (down if spec.plan else down.T)
            if self._down.bias is not None:
                result = result + self._down.bias[expert]
            y[rows] += weights[rows, expert][:, None] * result
        if self._shared:
            y += self._shared(n)
        y = normalise(y, spec.post_norm) if spec.post_norm else y
        if self._beside and spec.joined_norm:
            self._beside.forward(x, y)
            y = normalise(y, spec.joined_norm)
        out += y

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        """Of all experts (T, E F), the neurons of those that a row does not select being zero."""
        spec = self.spec
        weights = self.select(x)
        n = normalise(x, spec.norm)
        gate[:], h[:] = 0, 0
        selected = ~(weights <= 0)
        for expert in np.flatnonzero(selected.any(axis=0)).tolist():
            rows = np.flatnonzero(selected[:, expert])
            own = slice(expert * spec.shape.size, (expert + 1) * spec.shape.size)
            gate[rows, own], h[rows, own] = self._hidden(n[rows], expert)

    def fired(self, x: F32, weights: F32) -> F32:
        n = normalise(x, self.spec.norm)
        counts = np.zeros_like(weights)
        selected = ~(weights <= 0)
        for expert in np.flatnonzero(selected.any(axis=0)).tolist():
            rows = np.flatnonzero(selected[:, expert])
            counts[rows, expert] = np.count_nonzero(self._hidden(n[rows], expert)[1], axis=1)
        return counts

    def _hidden(self, n: F32, expert: int) -> tuple[F32, F32]:
        """Of normalised input, the activation's input and the values of one expert's neurons."""
        up = self._up(n, expert)
        gate = self._gate(n, expert) if self._gate else None
        return up if gate is None else gate, neurons(self.spec.activation, gate, up)


class _Stack:
    """One matrix of each expert."""

    def __init__(self, linear: Linear) -> None:
        self._tensor = linear.weight
        self.bias = linear.bias

    def of(self, expert: int) -> F32:
        return self._tensor.part(expert).to_float32()

    def __call__(self, n: F32, expert: int) -> F32:
        y: F32 = n @ self.of(expert).T
        return y if self.bias is None else y + self.bias[expert]


class _Shared:
    """The expert that every row uses."""

    def __init__(self, spec: SharedExpertSpec, activation: Activation) -> None:
        self._activation = activation
        self._gate = ReferenceLinear(spec.gate) if spec.gate else None
        self._up, self._down = ReferenceLinear(spec.up), ReferenceLinear(spec.down)
        self._switch = ReferenceLinear(spec.switch) if spec.switch else None

    def __call__(self, n: F32) -> F32:
        gate = self._gate(n) if self._gate else None
        y = self._down(neurons(self._activation, gate, self._up(n)))
        return y if self._switch is None else y * sigmoid(self._switch(n))
