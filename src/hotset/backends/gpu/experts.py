"""A mixture of experts on the GPU, of which all experts or some are there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton

from hotset.backends.checks import check_shape
from hotset.backends.contract import F32, ExpertsSpec, FFNSpec, Linear, SharedExpertSpec
from hotset.backends.gpu.device import INTERPRETED, Gpu
from hotset.backends.gpu.ffn import ACTIVATIONS, GpuFFN, GpuNorm
from hotset.backends.gpu.kernels import experts as kernels
from hotset.backends.gpu.kernels.activation import neurons
from hotset.backends.gpu.matrix import Matrix, build_matrix, matvec_rows, one_above_the_other
from hotset.core.config import Gating
from hotset.core.errors import HotsetError

_GATINGS = {Gating.SOFTMAX: 0, Gating.SIGMOID: 1, Gating.SELECTED: 2}
_FEW_ROWS = 8
"""Rows that go through the experts one by one; more are grouped by expert."""


class GpuExperts:
    """`resident` experts are here, at least one, and room for one more: all, if None.

    Each lies in a slot. Another may be written to the spare slot while the others are read, and then take the
    place of one of them, whose slot becomes the spare one. Decoding is a fixed list of kernels, whatever is
    selected: for a slot that no row selects nothing is read.
    """

    def __init__(self, gpu: Gpu, spec: ExpertsSpec, resident: Sequence[int] | None = None) -> None:
        shape, hidden = spec.shape, spec.norm.weight.size
        self.gpu, self.spec, self.hidden = gpu, spec, hidden
        self.held: list[int | None] = list(range(shape.count)) if resident is None else [*resident, None]
        self.norm = GpuNorm(gpu, spec.norm, hidden)
        self.post_norm = GpuNorm(gpu, spec.post_norm, hidden) if spec.post_norm else None
        self.router = build_matrix(gpu, spec.router, shape.count, hidden)
        self._router_norm = GpuNorm(gpu, spec.router_norm or spec.norm, hidden)
        self._selection_bias, self._factors = (
            None if numbers is None else gpu.upload(np.asarray(numbers, np.float32))
            for numbers in (spec.selection_bias, spec.factors)
        )
        self._beside = GpuFFN(gpu, spec.beside) if spec.beside else None
        self._joined_norm = GpuNorm(gpu, spec.joined_norm, hidden) if spec.joined_norm else None
        self._shared = _Shared(gpu, spec, spec.shared) if spec.shared else None
        self.gate = self._stack(spec.gate, (shape.size, hidden)) if spec.gate else None
        self.up = self._stack(spec.up, (shape.size, hidden))
        self.down = self._stack(spec.down, (shape.size, hidden) if spec.plan else (hidden, shape.size))
        self._activation = ACTIVATIONS[spec.activation]
        held = np.array([-1 if expert is None else expert for expert in self.held], np.int32)
        where = np.full(shape.count, -1, np.int32)
        where[held[held >= 0]] = np.flatnonzero(held >= 0)
        self._expert, self._slot = gpu.upload(held), gpu.upload(where)

    @property
    def resident(self) -> list[int]:
        """The numbers of the experts that are here."""
        return [expert for expert in self.held if expert is not None]

    def route(self, x: Any) -> Any:
        logits = self.gpu.scratch("router", len(x), self.spec.shape.count)
        self.router.times(x, logits)
        return logits

    def select(self, x: Any, logits: Any = None) -> Any:
        shape, bias, factors = self.spec.shape, self._selection_bias, self._factors
        if logits is None:
            logits = self.route(self._router_norm.input(x).numbers)
        weights = self.gpu.scratch("experts", len(x), shape.count)
        kernels.select_experts[(len(x),)](
            logits, logits if bias is None else bias, logits if factors is None else factors, weights,
            shape.count, shape.scale, USED=shape.used, GATING=_GATINGS[shape.gating],
            NORMALISED=shape.normalised, GROUPS=shape.groups, GROUPS_USED=shape.groups_used,
            HAS_BIAS=bias is not None, HAS_FACTORS=factors is not None,
            BLOCK=triton.next_power_of_2(shape.count), num_warps=1,
        )  # fmt: skip
        return weights

    def forward(self, x: Any, out: Any, view: object = None, logits: Any = None) -> None:
        self.add(x, out, self.select(x, logits))

    def add(self, x: Any, out: Any, weights: Any) -> None:
        """Those that are here, the shared one, and the FFN beside them."""
        if not self._beside or not self._joined_norm:
            self._add_mixture(x, out, weights)
            return
        both = self.gpu.scratch("both", *x.shape)
        both.zero_()
        self._add_mixture(x, both, weights)
        self._beside.forward(x, both)
        self._joined_norm.forward(both, out, add=True)

    def _add_mixture(self, x: Any, out: Any, weights: Any) -> None:
        y = out
        if self.post_norm or self._shared:
            y = self.gpu.scratch("y", *x.shape)
            y.zero_()
        if self._shared:
            self._shared.add(x, y)
        n = self.norm.input(x)
        if len(x) <= _FEW_ROWS:
            self._add_few(n.numbers, y, weights)
        else:
            self._add_many(n.numbers, y, weights)
        if self.post_norm:
            self.post_norm.forward(y, out, add=True)
        elif y is not out:
            out += y

    def neurons(self, x: Any, gate: F32, h: F32) -> None:
        """Of all experts (T, E F); zeros for those that a row does not select."""
        size = self.spec.shape.size
        weights = self.select(x)
        n = self.norm.input(x).numbers
        gate[:], h[:] = 0, 0
        for expert in self.resident:
            rows = torch.nonzero(weights[:, expert] > 0).flatten()
            own = slice(expert * size, (expert + 1) * size)
            before, values = self._hidden(self.held.index(expert), n[rows])
            gate[rows.cpu().numpy(), own] = before.cpu().numpy()
            h[rows.cpu().numpy(), own] = values.cpu().numpy()

    def for_host(self, weights: Any) -> Any:
        """The weights (T, E) with those of resident experts negated."""
        return torch.where(self._slot >= 0, -weights, weights)

    def write(self, expert: int) -> None:
        """Copy an expert to the spare slot, in the order of the current stream."""
        slot = self.held.index(None)
        for stack, linear in (
            (self.gate, self.spec.gate),
            (self.up, self.spec.up),
            (self.down, self.spec.down),
        ):
            if stack and linear:
                stack.fill(slot, linear, expert)

    def switch(self, leaving: int, coming: int) -> None:
        """Have the spare slot's expert in place of another, whose slot becomes the spare one."""
        old, new = self.held.index(leaving), self.held.index(None)
        self.held[old], self.held[new] = None, coming
        self._expert[old], self._expert[new] = -1, coming
        self._slot[leaving], self._slot[coming] = -1, new

    def _stack(self, linear: Linear, shape: tuple[int, int]) -> "_Stack":
        first = self.resident[0]  # is in the spare slot, too, until another is
        return _Stack(self.gpu, linear, shape, [first if expert is None else expert for expert in self.held])

    def _add_few(self, n: Any, out: Any, weights: Any) -> None:
        """Rows one by one, each through the experts that it selects."""
        gpu, shape, tokens = self.gpu, self.spec.shape, len(n)
        slots, up, down = len(self.held), self.up.matrix, self.down.matrix
        gate = self.gate.matrix if self.gate else up
        if bool(gate.bits) != bool(up.bits):
            raise HotsetError(f"{self.spec.up.weight.name}: gate of floats and up of codes, or the reverse")
        h = gpu.scratch("expert neurons", tokens, slots, shape.size)
        rows = matvec_rows(up, gpu.multiprocessors)
        kernels.expert_neurons[triton.cdiv(shape.size, rows), slots, tokens](
            *_codes(gpu, n, up), weights, self._expert, shape.count, *gate.arrays, gate.bias, *up.arrays,
            up.bias, h, up.rows, shape.size, self.hidden, GATE_BITS=gate.bits, GATE_SCALES=gate.scaled,
            GATE_W=gate.words, GATE_K=gate.fields, BITS=up.bits, SCALES=up.scaled, W=up.words, K=up.fields,
            GATED=self.gate is not None, GATE_BIAS=gate.has_bias, UP_BIAS=up.has_bias,
            ACTIVATION=self._activation, BR=rows, PTX=gpu.ptx, EVEN=gate.even and up.even, num_warps=1,
        )  # fmt: skip
        if self.spec.plan:
            block = 256 if gpu.multiprocessors == INTERPRETED else 64
            kernels.add_experts_by_neuron[triton.cdiv(self.hidden, block), tokens](
                h, weights, self._slot, shape.count, slots, *down.arrays, down.bias, out, down.rows,
                shape.size, self.hidden, BITS=down.bits, SCALES=down.scaled, W=down.tile_words,
                K=down.tile_fields, HAS_BIAS=down.has_bias, BR=32, BC=block, num_warps=4,
            )  # fmt: skip
            return
        read, stride = h, shape.size
        if down.bits:
            stride = shape.size // 32 * 11
            read = gpu.scratch("expert codes", tokens, slots, stride, dtype=torch.int32)
            block = 2048 if gpu.multiprocessors == INTERPRETED else 256
            kernels.quantise_neurons[triton.cdiv(shape.size, block), slots, tokens](
                h, read, weights, self._expert, shape.count, shape.size, stride, BLOCK=block, num_warps=1
            )
        rows = matvec_rows(down, gpu.multiprocessors)
        kernels.add_experts[triton.cdiv(self.hidden, rows), tokens](
            read, stride, weights, self._slot, shape.count, slots, *down.arrays, down.bias, out, down.rows,
            shape.size, self.hidden, BITS=down.bits, SCALES=down.scaled, W=down.words, K=down.fields,
            HAS_BIAS=down.has_bias, BR=rows, PTX=gpu.ptx, EVEN=down.even, num_warps=1,
        )  # fmt: skip

    def _add_many(self, n: Any, out: Any, weights: Any) -> None:
        """Rows grouped by expert, in the order of the experts' numbers. Waits for the selection."""
        chosen = (weights > 0).cpu().numpy() | torch.isnan(weights).cpu().numpy()
        slots = {expert: slot for slot, expert in enumerate(self.held)}
        for expert in np.flatnonzero(chosen.any(axis=0)).tolist():
            if expert not in slots:
                continue
            rows = torch.from_numpy(np.flatnonzero(chosen[:, expert])).to(n.device)
            _, h = self._hidden(slots[expert], n[rows])
            y = self.gpu.empty(len(rows), self.hidden)
            down = self.down.part(slots[expert])
            if self.spec.plan:
                down.sum_rows(h, y, skip=self.spec.activation.zero_producing)
            else:
                down.times(h, y)
            out[rows] += weights[rows, expert][:, None] * y

    def _hidden(self, slot: int, n: Any) -> tuple[Any, Any]:
        """The activation's input and the neurons' values, (T, F), of a slot's expert, given normed (T, D)."""
        size = self.spec.shape.size
        up = self.gpu.empty(len(n), size)
        if not len(n):
            return up, up
        self.up.part(slot).times(n, up)
        before = up
        if self.gate:
            before = self.gpu.empty(len(n), size)
            self.gate.part(slot).times(n, before)
        h = self.gpu.empty(len(n), size)
        h.copy_(up)
        neurons[(triton.cdiv(h.numel(), 1024),)](
            before, h, h, h.numel(), GATED=self.gate is not None, ACTIVATION=self._activation, BLOCK=1024,
            num_warps=4,
        )  # fmt: skip
        return before, h


class _Stack:
    """One matrix of each slot's expert, (rows, cols), one after the other."""

    def __init__(self, gpu: Gpu, linear: Linear, shape: tuple[int, int], resident: Sequence[int]) -> None:
        check_shape(linear.weight.name, linear.weight.shape[1:], shape)
        self._gpu, self._rows, self._slots = gpu, shape[0], len(resident)
        stacked = one_above_the_other(linear.weight, resident)
        bias = None if linear.bias is None else linear.bias[list(resident)]
        self._outputs = None if bias is None else bias.shape[1]
        self.matrix = build_matrix(
            gpu,
            Linear(stacked, None if bias is None else np.ascontiguousarray(bias).reshape(-1)),
            *stacked.shape,
            outputs=None if bias is None else bias.size,
        )

    def part(self, slot: int) -> Matrix:
        """The matrix in a slot."""
        return self.matrix.slice(slot, self._slots)

    def fill(self, slot: int, linear: Linear, expert: int) -> None:
        """Put an expert's matrix in a slot."""
        bias = None if linear.bias is None else linear.bias[expert]
        own = Linear(linear.weight.part(expert), bias)
        self.part(slot).assign(build_matrix(self._gpu, own, *own.weight.shape, outputs=self._outputs))


class _Shared:
    """The expert that every row uses."""

    def __init__(self, gpu: Gpu, spec: ExpertsSpec, shared: SharedExpertSpec) -> None:
        self._gpu = gpu
        ffn = FFNSpec(spec.norm, shared.gate, shared.up, shared.down, spec.activation)
        self._ffn = GpuFFN(gpu, ffn)
        hidden = spec.norm.weight.size
        self._switch = build_matrix(gpu, shared.switch, 1, hidden) if shared.switch else None

    def add(self, x: Any, out: Any) -> None:
        """Add its result of x (T, D), before the norm, to zeros."""
        self._ffn.forward(x, out)
        if self._switch:
            factor = self._gpu.scratch("switch", len(x), 1)
            self._switch.times(self._ffn.norm.input(x), factor)
            out *= torch.sigmoid(factor)


def _codes(gpu: Gpu, x: Any, matrix: Matrix) -> tuple[Any, int]:
    """What each row of x (T, C) is to a matrix, its codes or its numbers; and how far rows are apart."""
    tokens, size = x.shape
    if not matrix.bits:
        return x, size
    stride = size // 32 * 11
    codes = gpu.scratch("row codes", tokens, stride, dtype=torch.int32)
    block = 2048 if gpu.multiprocessors == INTERPRETED else 256
    kernels.quantise_rows[triton.cdiv(size, block), tokens](x, codes, size, stride, BLOCK=block, num_warps=1)
    return codes, stride
