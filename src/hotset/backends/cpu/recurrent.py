"""Layers with a recurrent state: their native parts, made of specs."""

from collections.abc import Callable

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
from hotset.backends.cpu.state import CpuView
from hotset.core.config import Recurrent
from hotset.core.errors import CheckpointError


class CpuRecurrent:
    """One layer with a recurrent state."""

    def __init__(self, native: _native.DeltaNet | _native.ShortConv | _native.Mamba) -> None:
        self.native = native

    def forward(self, x: F32, out: F32, view: CpuView) -> None:
        self.native.forward(x, out, view.native)


def native_shape(layer: Recurrent) -> tuple[int, int, int, int, int, int]:
    """A layer's state as native sequences are told of it."""
    sums = layer.sums
    return sums.n_key_heads, sums.n_value_heads, sums.key_dim, sums.value_dim, layer.kernel, layer.channels


def build_recurrent(
    runtime: _native.Runtime,
    spec: RecurrentSpec,
    index: int,
    linear: Callable[[Linear, int, int], _native.Linear],
    norm: Callable[[Norm, int], _native.Norm],
) -> CpuRecurrent:
    """Build the native part; `linear` (rows, columns) and `norm` (numbers) build what it is made of."""
    hidden, shape = spec.norm.weight.size, spec.shape
    if spec.conv.shape != (shape.channels, shape.kernel):
        raise CheckpointError(
            f"{spec.output.weight.name}: convolution: expected shape {[shape.channels, shape.kernel]}, "
            f"found {list(spec.conv.shape)}"
        )
    conv = np.ascontiguousarray(spec.conv.T).reshape(-1)
    match spec:
        case DeltaNetSpec():
            net = spec.shape
            values = net.n_value_heads * net.head_dim
            return CpuRecurrent(
                _native.DeltaNet(
                    runtime=runtime,
                    norm=norm(spec.norm, hidden),
                    qkv=linear(spec.qkv, net.channels, hidden),
                    z=linear(spec.z, values, hidden),
                    beta=linear(spec.beta, net.n_value_heads, hidden),
                    alpha=linear(spec.alpha, net.n_value_heads, hidden),
                    output=linear(spec.output, hidden, values),
                    conv=conv,
                    dt_bias=spec.dt_bias,
                    decay=spec.decay,
                    out_norm=norm(spec.out_norm, net.head_dim),
                    n_key_heads=net.n_key_heads,
                    n_value_heads=net.n_value_heads,
                    head_dim=net.head_dim,
                    kernel=net.kernel,
                    tiled=net.tiled,
                    index=index,
                )
            )
        case ShortConvSpec():
            return CpuRecurrent(
                _native.ShortConv(
                    runtime=runtime,
                    norm=norm(spec.norm, hidden),
                    input=linear(spec.input, 3 * hidden, hidden),
                    output=linear(spec.output, hidden, hidden),
                    conv=conv,
                    kernel=shape.kernel,
                    index=index,
                )
            )
        case MambaSpec():
            mamba = spec.shape
            return CpuRecurrent(
                _native.Mamba(
                    runtime=runtime,
                    norm=norm(spec.norm, hidden),
                    input=linear(spec.input, mamba.values + mamba.channels + mamba.n_heads, hidden),
                    output=linear(spec.output, hidden, mamba.values),
                    conv=np.concatenate([conv, spec.conv_bias]),
                    dt_bias=spec.dt_bias,
                    decay=spec.decay,
                    skip=spec.skip,
                    out_norm=norm(spec.out_norm, mamba.values),
                    n_groups=mamba.n_groups,
                    n_heads=mamba.n_heads,
                    state_dim=mamba.state_dim,
                    head_dim=mamba.head_dim,
                    kernel=mamba.kernel,
                    index=index,
                )
            )
