"""Norms and FFNs on the GPU."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import triton

from hotset import _native
from hotset.backends.checks import check_gate, check_shape
from hotset.backends.contract import F32, FFNSpec, LayerInputSpec, Linear, NeuronFFNSpec, Norm
from hotset.backends.gpu.device import INTERPRETED, Gpu
from hotset.backends.gpu.kernels import norm as norm_kernels
from hotset.backends.gpu.kernels.activation import neurons
from hotset.backends.gpu.kernels.matvec import neurons_matvec
from hotset.backends.gpu.matrix import Input, Matrix, build_matrix, code_room, matvec_rows
from hotset.backends.gpu.state import blocks_of
from hotset.core.config import Activation, NormKind

ACTIVATIONS = {activation: _native.ACTIVATIONS[activation.value] for activation in Activation}
"""Their numbers in kernels."""

Placed = TypeVar("Placed", "GpuNorm", Matrix)


class GpuNorm:
    """RMS norm, layer norm or none of vectors of n numbers."""

    def __init__(self, gpu: Gpu, norm: Norm, size: int) -> None:
        check_shape("norm", norm.weight.shape, (size,))
        self.gpu, self.size, self.eps = gpu, size, float(norm.eps)
        self.none = norm.kind is NormKind.NONE
        self.layer = norm.kind is NormKind.LAYER
        self.weight = gpu.upload(np.asarray(norm.weight, np.float32))
        self.has_bias = norm.bias is not None
        self.bias = self.weight if norm.bias is None else gpu.upload(np.asarray(norm.bias, np.float32))

    def move(self, move: Callable[[Any], Any]) -> None:
        """Have each array where `move` puts it."""
        self.weight, self.bias = move(self.weight), move(self.bias)

    def forward(self, x: Any, out: Any, *, add: bool = False) -> None:
        """out (T, n) = the norm of x (T, n), or += with `add`; rows may be strided."""
        self._run(x, out, None, add, self._rows())

    def input(self, x: Any) -> Input:
        """The norm of x (T, n), as what matrices are multiplied with."""
        out = self.gpu.scratch("n", *x.shape)
        if self.none:
            out.copy_(x)
            return Input(self.gpu, out)
        codes = code_room(self.gpu, self.size) if len(x) == 1 and self.size % 32 == 0 else None
        self._run(x, out, codes, False, 1 if codes is not None else self._rows())
        return Input(self.gpu, out, codes)

    def _rows(self) -> int:
        return 16 if self.gpu.multiprocessors == INTERPRETED else 1

    def _run(self, x: Any, out: Any, codes: Any, add: bool, rows: int) -> None:
        norm_kernels.norm[(triton.cdiv(len(x), rows),)](
            x, x.stride(0), self.weight, self.bias, out, out.stride(0), out if codes is None else codes,
            len(x), self.size, self.eps, LAYER=self.layer, HAS_BIAS=self.has_bias, ADD=add,
            CODES=codes is not None, BT=rows, BLOCK=max(32, triton.next_power_of_2(self.size)),
            num_warps=16 if self.size > 1024 else 4,
        )  # fmt: skip


class Place(Protocol):
    """Says where a norm's or a matrix's arrays are to be; returns what it is given."""

    def __call__(self, part: Placed) -> Placed:
        """Move the arrays of a part."""


def _where_it_is(part: Placed) -> Placed:
    return part


class GpuFFN:
    """All neurons of an FFN, for every token; see `hotset.backends.contract.FFN`.

    Decoding is three kernels: the norm, gate and up with the activation, and down.
    """

    def __init__(self, gpu: Gpu, spec: FFNSpec | NeuronFFNSpec, place: Place = _where_it_is) -> None:
        """`place` moves each matrix when it is built, before the next is."""
        hidden, size = spec.norm.weight.size, spec.up.weight.shape[0]
        check_gate(spec.up.weight.name, spec.activation, spec.gate)
        self.gpu, self.size = gpu, size
        self.norm = place(GpuNorm(gpu, spec.norm, hidden))
        self.post_norm = place(GpuNorm(gpu, spec.post_norm, hidden)) if spec.post_norm else None
        self.gate = place(build_matrix(gpu, spec.gate, size, hidden)) if spec.gate else None
        self.up = place(build_matrix(gpu, spec.up, size, hidden))
        self.down = place(self._build_down(spec, hidden, size))
        self.activation = ACTIVATIONS[spec.activation]

    def _build_down(self, spec: Any, hidden: int, size: int) -> Matrix:
        down: Linear = spec.down
        return build_matrix(self.gpu, down, hidden, size)

    def forward(self, x: Any, out: Any, view: object = None) -> None:
        """Every neuron is computed, whatever the batch is."""
        for rows in blocks_of(len(x)):
            self._forward(x[rows], out[rows])

    def _forward(self, x: Any, out: Any) -> None:
        h = self._hidden(self.norm.input(x))
        if self.post_norm is None:
            self._down(h, out, add=True)
        else:
            y = self.gpu.scratch("y", *x.shape)
            self._down(h, y, add=False)
            self.post_norm.forward(y, out, add=True)

    def neurons(self, x: Any, gate: F32, h: F32) -> None:
        n = self.norm.input(x)
        before = self.gpu.empty(len(x), self.size)
        (self.gate or self.up).times(n, before)
        gate[:] = before.cpu().numpy()
        h[:] = self._hidden(n).cpu().numpy()

    def _hidden(self, n: Input) -> Any:
        """The neurons' values (T, F) of normalised input (T, D)."""
        tokens, gate, up = len(n.numbers), self.gate, self.up
        h = self.gpu.scratch("h", tokens, self.size)
        if tokens == 1 and (gate is None or bool(gate.bits) == bool(up.bits)):
            self._hidden_of_one(n, h)
            return h
        up.times(n, h)
        before = h
        if gate is not None:
            before = self.gpu.scratch("gate", tokens, self.size)
            gate.times(n, before)
        neurons[(triton.cdiv(h.numel(), 1024),)](
            before, h, h, h.numel(), GATED=gate is not None, ACTIVATION=self.activation, BLOCK=1024,
            num_warps=4,
        )  # fmt: skip
        return h

    def _hidden_of_one(self, n: Input, h: Any) -> None:
        up, gate = self.up, self.gate or self.up
        rows = matvec_rows(up, self.gpu.multiprocessors)
        neurons_matvec[(triton.cdiv(up.rows, rows),)](
            n.codes if up.bits else n.numbers, *gate.arrays, gate.bias, *up.arrays, up.bias, h, up.rows,
            up.cols, GATE_BITS=gate.bits, GATE_SCALES=gate.scaled, GATE_W=gate.words, GATE_K=gate.fields,
            BITS=up.bits, SCALES=up.scaled, W=up.words, K=up.fields, GATED=self.gate is not None,
            GATE_BIAS=gate.has_bias, UP_BIAS=up.has_bias, ACTIVATION=self.activation, BR=rows,
            PTX=self.gpu.ptx, EVEN=gate.even and up.even, num_warps=1,
        )  # fmt: skip

    def _down(self, h: Any, out: Any, add: bool) -> None:
        self.down.times(h, out, add=add)


class GpuLayerInput:
    """What a layer's own embedding of the tokens adds; see `hotset.backends.contract.LayerInput`."""

    def __init__(self, gpu: Gpu, spec: LayerInputSpec) -> None:
        size, hidden = spec.gate.weight.shape
        self.gpu = gpu
        self.gate, self.up = (
            build_matrix(gpu, spec.gate, size, hidden),
            build_matrix(gpu, spec.up, hidden, size),
        )
        self.post_norm = GpuNorm(gpu, spec.post_norm, hidden)

    def forward(self, x: Any, e: Any, out: Any) -> None:
        h, y = self.gpu.scratch("h", *e.shape), self.gpu.scratch("y", *x.shape)
        self.gate.times(x, h)
        neurons[(triton.cdiv(h.numel(), 1024),)](
            h,
            e.contiguous(),
            h,
            h.numel(),
            GATED=True,
            ACTIVATION=ACTIVATIONS[Activation.GELU_TANH],
            BLOCK=1024,
            num_warps=4,
        )
        self.up.times(h, y)
        self.post_norm.forward(y, out, add=True)


class GpuNeuronFFN(GpuFFN):
    """An FFN stored by neuron; see `hotset.backends.contract.FFN`.

    A GPU computes all neurons whatever the plan's way is: there the bytes are cheap. Only rows of down whose
    neuron is exactly zero are not read, which changes nothing.
    """

    def __init__(self, gpu: Gpu, spec: NeuronFFNSpec, place: Place = _where_it_is) -> None:
        super().__init__(gpu, spec, place)
        self._skip = spec.activation.zero_producing

    def _build_down(self, spec: Any, hidden: int, size: int) -> Matrix:
        down_t: Linear = spec.down_t
        return build_matrix(self.gpu, down_t, size, hidden, outputs=hidden)

    def _down(self, h: Any, out: Any, add: bool) -> None:
        self.down.sum_rows(h, out, add=add, skip=self._skip)
