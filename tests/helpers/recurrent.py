"""Layers with a recurrent state, of odd sizes and of usual ones, with sequences of their own."""

from typing import Any

import numpy as np

from helpers.random_tensors import random_tensor
from hotset.backends.contract import (
    F32,
    DeltaNetSpec,
    Linear,
    MambaSpec,
    Norm,
    RecurrentSpec,
    ShortConvSpec,
    StateShape,
)
from hotset.core.batch import Batch, Sequence, Span
from hotset.core.config import DeltaNetConfig, MambaConfig, NormKind, Recurrent, ShortConvConfig
from hotset.formats.tensor import TensorType, tensor_from_array

HIDDEN = 64
POSITIONS = 90
SHAPES: dict[str, Recurrent] = {
    "tiled": DeltaNetConfig(2, 6, 12, 4, tiled=True),
    "grouped": DeltaNetConfig(3, 6, 40, 2, tiled=False),
    "usual": DeltaNetConfig(1, 2, 128, 4, tiled=True),
    "mamba": MambaConfig(2, 6, 20, 12, 4),
    "usual mamba": MambaConfig(1, 2, 64, 128, 4),
    "convolution": ShortConvConfig(HIDDEN, 3),
    "long convolution": ShortConvConfig(HIDDEN, 20),
}


def numbers(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def spec_of(shape: Recurrent, quantised: bool = False) -> RecurrentSpec:
    def linear(seed: int, rows: int, cols: int) -> Linear:
        if quantised and cols % 32 == 0:
            return Linear(random_tensor(TensorType.Q4_0, rows, cols, seed=seed))
        return Linear(tensor_from_array(f"weight_{seed}", numbers(seed, rows, cols) / np.float32(cols**0.5)))

    norm = Norm(NormKind.RMS, 1e-5, 1 + numbers(1, HIDDEN) / 4)
    conv = numbers(6, shape.channels, shape.kernel)
    if isinstance(shape, ShortConvConfig):
        return ShortConvSpec(norm, linear(2, 3 * HIDDEN, HIDDEN), conv, linear(10, HIDDEN, HIDDEN), shape)
    if isinstance(shape, MambaConfig):
        return MambaSpec(
            norm=norm,
            input=linear(2, shape.values + shape.channels + shape.n_heads, HIDDEN),
            conv=conv,
            conv_bias=numbers(3, shape.channels),
            dt_bias=numbers(7, shape.n_heads),
            decay=-np.exp(numbers(8, shape.n_heads)) / 4,
            skip=numbers(5, shape.n_heads),
            out_norm=Norm(NormKind.RMS, 1e-5, 1 + numbers(9, shape.values) / 4),
            output=linear(10, HIDDEN, shape.values),
            shape=shape,
        )
    values = shape.n_value_heads * shape.head_dim
    return DeltaNetSpec(
        norm=norm,
        qkv=linear(2, shape.channels, HIDDEN),
        z=linear(3, values, HIDDEN),
        beta=linear(4, shape.n_value_heads, HIDDEN),
        alpha=linear(5, shape.n_value_heads, HIDDEN),
        conv=conv,
        dt_bias=numbers(7, shape.n_value_heads),
        decay=-np.exp(numbers(8, shape.n_value_heads)) / 4,
        out_norm=Norm(NormKind.RMS, 1e-5, 1 + numbers(9, shape.head_dim) / 4),
        output=linear(10, HIDDEN, values),
        shape=shape,
    )


def new_sequence(backend: Any, shape: Recurrent) -> Sequence:
    sequence: Sequence = backend.sequence(StateShape(1, 1, 32, recurrent=(shape,)), POSITIONS, "f16")
    return sequence


def go_on(backend: Any, layer: Any, x: F32, *sequences: tuple[Sequence, int]) -> F32:
    """Append rows of x, so many to each sequence."""
    spans = tuple(Span(sequence, count) for sequence, count in sequences)
    batch = Batch(np.zeros(len(x), np.int32), spans)
    out = np.zeros_like(x)
    if backend.name == "gpu":
        there = backend.gpu.upload(out)
        layer.forward(backend.gpu.upload(x), there, backend.view(batch))
        out = there.cpu().numpy().copy()
    else:
        layer.forward(x, out, backend.view(batch))
    for sequence, count in sequences:
        sequence.advance(count)
    return out
