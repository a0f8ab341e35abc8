"""Layers with a recurrent state: their native parts, made of specs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hotset import _native
from hotset.backends.contract import (
    F32,
    DeltaNetSpec,
    Linear,
    MambaSpec,
    Norm,
    RecurrentSpec,
    ShortConvSpec,
)
from hotset.core.config import Recurrent
from hotset.core.errors import CheckpointError


class CpuRecurrent:
    """One layer with a recurrent state."""

    def __init__(self, native: _native.DeltaNet | _native.ShortConv | _native.Mamba) -> None:
        self.native = native
        self.forward = native.forward


def native_shape(layer: Recurrent) -> tuple[int, int, int, int, int, int]:
    """A layer's state as native sequences are told of it."""
    sums = layer.sums
    return sums.n_key_heads, sums.n_value_heads, sums.key_dim, sums.value_dim, layer.kernel, layer.channels


@dataclass(frozen=True)
class _Builder:
    """What native parts are made with: `linear` (rows, columns) and `norm` (numbers) build their own."""

    runtime: _native.Runtime
    index: int
    linear: Callable[[Linear, int, int], _native.Linear]
    norm: Callable[[Norm, int], _native.Norm]

    def delta_net(self, spec: DeltaNetSpec, conv: F32) -> _native.DeltaNet:
        hidden, net = spec.norm.weight.size, spec.shape
        values = net.n_value_heads * net.head_dim
        return _native.DeltaNet(
            runtime=self.runtime,
            norm=self.norm(spec.norm, hidden),
            qkv=self.linear(spec.qkv, net.channels, hidden),
            z=self.linear(spec.z, values, hidden),
            beta=self.linear(spec.beta, net.n_value_heads, hidden),
            alpha=self.linear(spec.alpha, net.n_value_heads, hidden),
            output=self.linear(spec.output, hidden, values),
            conv=conv,
            dt_bias=spec.dt_bias,
            decay=spec.decay,
            out_norm=self.norm(spec.out_norm, net.head_dim),
            n_key_heads=net.n_key_heads,
            n_value_heads=net.n_value_heads,
            head_dim=net.head_dim,
            kernel=net.kernel,
            tiled=net.tiled,
            index=self.index,
        )

    def short_conv(self, spec: ShortConvSpec, conv: F32) -> _native.ShortConv:
        hidden = spec.norm.weight.size
        return _native.ShortConv(
            runtime=self.runtime,
            norm=self.norm(spec.norm, hidden),
            input=self.linear(spec.input, 3 * hidden, hidden),
            output=self.linear(spec.output, hidden, hidden),
            conv=conv,
            kernel=spec.shape.kernel,
            index=self.index,
        )

    def mamba(self, spec: MambaSpec, conv: F32) -> _native.Mamba:
        hidden, mamba = spec.norm.weight.size, spec.shape
        return _native.Mamba(
            runtime=self.runtime,
            norm=self.norm(spec.norm, hidden),
            input=self.linear(spec.input, mamba.values + mamba.channels + mamba.n_heads, hidden),
            output=self.linear(spec.output, hidden, mamba.values),
            conv=np.concatenate([conv, spec.conv_bias]),
            dt_bias=spec.dt_bias,
            decay=spec.decay,
            skip=spec.skip,
            out_norm=self.norm(spec.out_norm, mamba.values),
            n_groups=mamba.n_groups,
            n_heads=mamba.n_heads,
            state_dim=mamba.state_dim,
            head_dim=mamba.head_dim,
            kernel=mamba.kernel,
            index=self.index,
        )


def build_recurrent(
    runtime: _native.Runtime,
    spec: RecurrentSpec,
    index: int,
    linear: Callable[[Linear, int, int], _native.Linear],
    norm: Callable[[Norm, int], _native.Norm],
) -> CpuRecurrent:
    """Build the native part; `linear` (rows, columns) and `norm` (numbers) build what it is made of.

    Raises `CheckpointError` for a convolution of another shape.
    """
    shape = spec.shape
    if spec.conv.shape != (shape.channels, shape.kernel):
        raise CheckpointError(
            f"{spec.output.weight.name}: convolution: expected shape {[shape.channels, shape.kernel]}, "
            f"found {list(spec.conv.shape)}"
        )
    conv = np.ascontiguousarray(spec.conv.T).reshape(-1)
    builder = _Builder(runtime, index, linear, norm)
    match spec:
        case DeltaNetSpec():
            return CpuRecurrent(builder.delta_net(spec, conv))
        case ShortConvSpec():
            return CpuRecurrent(builder.short_conv(spec, conv))
        case MambaSpec():
            return CpuRecurrent(builder.mamba(spec, conv))
