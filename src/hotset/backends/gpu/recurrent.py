"""Layers with a recurrent state on the GPU.

A prompt's rows are walked one after the other, inside one kernel, by programs that each have some columns of
one head's sums in registers.
"""

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np
import triton

from hotset.backends.checks import check_shape
from hotset.backends.contract import F32, DeltaNetSpec, Linear, MambaSpec, RecurrentSpec, ShortConvSpec
from hotset.backends.gpu.device import INTERPRETED, Gpu
from hotset.backends.gpu.ffn import GpuNorm
from hotset.backends.gpu.kernels.recurrent import convolve, gate_and_norm, walk_delta_net, walk_mamba
from hotset.backends.gpu.matrix import build_matrix, build_stacked, times_stacked
from hotset.backends.gpu.state import Block, GpuView

_COLUMNS = 8
"""Of a head's sums for a program, which is one warp: so no number of a walk moves between warps."""


class _GpuRecurrent(ABC):
    """What such layers share: projections of the normed input, the convolution, and the output's product."""

    def __init__(
        self, gpu: Gpu, spec: RecurrentSpec, projections: list[tuple[Linear, int]], values: int, index: int
    ) -> None:
        """`projections` (linear, rows) are stacked; the output reads `values` numbers."""
        hidden, shape = spec.norm.weight.size, spec.shape
        check_shape(
            f"{spec.output.weight.name}: convolution", spec.conv.shape, (shape.channels, shape.kernel)
        )
        self.gpu, self.shape, self.values = gpu, shape, values
        self.offset = index * shape.state_size
        self.norm = GpuNorm(gpu, spec.norm, hidden)
        self.projections = build_stacked(gpu, projections, hidden)
        self.projected = sum(rows for _, rows in projections)
        self.conv = gpu.upload(np.ascontiguousarray(spec.conv.T))
        self.output = build_matrix(gpu, spec.output, hidden, values)

    def forward(self, x: Any, out: Any, view: GpuView) -> None:
        for block in view.blocks:
            n = self.norm.input(x[block.rows])
            projected = self.gpu.scratch("projected", len(n.numbers), self.projected)
            times_stacked(self.projections, n, projected)
            y = self.gpu.scratch("values", len(projected), self.values)
            self._mix(projected, y, block)
            self.output.times(y, out[block.rows], add=True)

    @abstractmethod
    def _mix(self, projected: Any, y: Any, block: Block) -> None:
        """Write what the output reads (T, values)."""

    def _convolve(self, x: Any, out: Any, block: Block, *, gated: bool = False, bias: Any = None) -> None:
        """See the kernel; x begins at the columns that it takes."""
        shape, interpreted = self.shape, self.gpu.multiprocessors == INTERPRETED
        columns = triton.next_power_of_2(shape.channels) if interpreted else 128
        convolve[triton.cdiv(shape.channels, columns), len(block.walks)](
            x, x.stride(0), block.walks, self.offset + shape.sums.size, self.conv,
            self.conv if bias is None else bias, out, shape.channels, KERNEL=shape.kernel, GATED=gated,
            HAS_BIAS=bias is not None, BT=min(16, triton.next_power_of_2(len(out))), BC=columns,
            BACK=triton.next_power_of_2(max(1, shape.kernel - 1)), num_warps=4,
        )  # fmt: skip

    def _tile(self) -> tuple[int, int]:
        """Rows and columns of a head's sums for a program."""
        sums = self.shape.sums
        columns = triton.next_power_of_2(sums.value_dim)
        if self.gpu.multiprocessors != INTERPRETED:
            columns = min(columns, _COLUMNS)
        return triton.next_power_of_2(sums.key_dim), columns

    def _gate(self, y: Any, gate: Any, norm: GpuNorm, groups: int, out: Any, *, first: bool) -> None:
        """The norm and the gate of y (T, values), in so many groups; gates' rows may be apart."""
        size, rows = self.values // groups, 16 if self.gpu.multiprocessors == INTERPRETED else 1
        gate_and_norm[(triton.cdiv(len(y) * groups, rows),)](
            y, gate, gate.stride(0), norm.weight, size if norm.size > size else 0, norm.bias, out, len(y),
            groups, size, norm.eps, GATE_FIRST=first, LAYER=norm.layer, HAS_BIAS=norm.has_bias, BT=rows,
            BLOCK=triton.next_power_of_2(size), num_warps=4 if size > 256 else 1,
        )  # fmt: skip


class GpuDeltaNet(_GpuRecurrent):
    """A gated delta net; see `DeltaNetSpec`. Decoding is six kernels or more."""

    def __init__(self, gpu: Gpu, spec: DeltaNetSpec, index: int) -> None:
        net = spec.shape
        heads, values = net.n_value_heads, net.n_value_heads * net.head_dim
        parts = [(spec.qkv, net.channels), (spec.z, values), (spec.beta, heads), (spec.alpha, heads)]
        super().__init__(gpu, spec, parts, values, index)
        self.net = net
        self.dt_bias, self.decay = _of_heads(gpu, spec.dt_bias), _of_heads(gpu, spec.decay)
        self.out_norm = GpuNorm(gpu, spec.out_norm, net.head_dim)

    def _mix(self, projected: Any, y: Any, block: Block) -> None:
        gpu, net = self.gpu, self.net
        u = gpu.scratch("convolved", len(y), net.channels)
        self._convolve(projected, u, block)
        z, gates = (projected[:, at:] for at in (net.channels, net.channels + self.values))
        rows, columns = self._tile()
        walk_delta_net[net.n_value_heads, triton.cdiv(net.head_dim, columns), len(block.walks)](
            u, gates, gates.stride(0), block.walks, self.offset, self.dt_bias, self.decay, y,
            net.n_key_heads, net.n_value_heads, net.head_dim, net.head_dim**-0.5, TILED=net.tiled, BK=rows,
            BV=columns, num_warps=1,
        )  # fmt: skip
        self._gate(y, z, self.out_norm, net.n_value_heads, y, first=False)


class GpuMamba(_GpuRecurrent):
    """Mamba-2; see `MambaSpec`. Decoding is six kernels or more."""

    def __init__(self, gpu: Gpu, spec: MambaSpec, index: int) -> None:
        mamba = spec.shape
        inputs = mamba.values + mamba.channels + mamba.n_heads
        super().__init__(gpu, spec, [(spec.input, inputs)], mamba.values, index)
        self.mamba = mamba
        self.conv_bias = gpu.upload(np.asarray(spec.conv_bias, np.float32))
        self.dt_bias, self.decay = _of_heads(gpu, spec.dt_bias), _of_heads(gpu, spec.decay)
        self.skip = _of_heads(gpu, spec.skip)
        self.out_norm = GpuNorm(gpu, spec.out_norm, mamba.values)

    def _mix(self, projected: Any, y: Any, block: Block) -> None:
        gpu, mamba = self.gpu, self.mamba
        inputs, steps = (projected[:, at:] for at in (mamba.values, mamba.values + mamba.channels))
        u = gpu.scratch("convolved", len(y), mamba.channels)
        self._convolve(inputs, u, block, bias=self.conv_bias)
        rows, columns = self._tile()
        walk_mamba[mamba.n_heads, triton.cdiv(mamba.head_dim, columns), len(block.walks)](
            u, steps, steps.stride(0), block.walks, self.offset, self.dt_bias, self.decay, self.skip, y,
            mamba.n_groups, mamba.n_heads, mamba.state_dim, mamba.head_dim, BK=rows, BV=columns, num_warps=1,
        )  # fmt: skip
        self._gate(y, projected, self.out_norm, mamba.n_groups, y, first=True)


class GpuShortConv(_GpuRecurrent):
    """A gated short convolution; see `ShortConvSpec`. Decoding is four kernels or more."""

    def __init__(self, gpu: Gpu, spec: ShortConvSpec, index: int) -> None:
        hidden = spec.shape.channels
        super().__init__(gpu, spec, [(spec.input, 3 * hidden)], hidden, index)

    def _mix(self, projected: Any, y: Any, block: Block) -> None:
        self._convolve(projected, y, block, gated=True)


def _of_heads(gpu: Gpu, numbers: F32) -> Any:
    return gpu.upload(np.asarray(numbers, np.float32))


GpuRecurrent: TypeAlias = GpuDeltaNet | GpuMamba | GpuShortConv


def build_recurrent(gpu: Gpu, spec: RecurrentSpec, index: int) -> GpuRecurrent:
    """Build the part. Raises `CheckpointError` for a convolution of another shape."""
    match spec:
        case DeltaNetSpec():
            return GpuDeltaNet(gpu, spec, index)
        case MambaSpec():
            return GpuMamba(gpu, spec, index)
        case ShortConvSpec():
            return GpuShortConv(gpu, spec, index)
