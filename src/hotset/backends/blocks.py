"""Quantised blocks to numbers and back, by native code: what the `gguf` library gives, to the bit."""

import math

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.codebooks import native_type
from hotset.backends.contract import F32
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats.tensor import Tensor, TensorType

NEURON_TYPES = (TensorType.F16, TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_1)
"""Types of which single neurons can be computed."""
_NEAREST = {
    TensorType.F32: TensorType.F16,
    TensorType.BF16: TensorType.F16,
    TensorType.Q4_K: TensorType.Q4_1,
    TensorType.Q2_K: TensorType.Q4_1,
    TensorType.Q3_K: TensorType.Q4_0,
    TensorType.TQ1_0: TensorType.Q4_0,
    TensorType.TQ2_0: TensorType.Q4_0,
}
"""For other types one of `NEURON_TYPES` with as many bits or more, whatever the blocks; Q8_0 for the rest."""


_RELAID_BYTES = {
    TensorType.TQ1_0: 66,
    **dict.fromkeys((TensorType.IQ1_S, TensorType.IQ1_M), 106),
    **dict.fromkeys((TensorType.IQ2_XXS, TensorType.IQ2_XS, TensorType.IQ2_S), 106),
    **dict.fromkeys((TensorType.IQ3_XXS, TensorType.IQ3_S), 138),
}
"""Of 256 numbers, in types that lie in memory otherwise than in files: codes of 2, 3 or 4 bits."""


def memory_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes as a matrix in memory, without padding; nothing is rounded."""
    if tensor.type not in _RELAID_BYTES:
        return tensor.nbytes
    return tensor.nbytes // tensor.type.block_bytes * _RELAID_BYTES[tensor.type]


_FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16)
_GPU_BLOCKS = {
    **{TensorType.Q4_0: 18, TensorType.Q4_1: 20, TensorType.Q8_0: 34},
    **{TensorType.Q5_0: 34, TensorType.Q5_1: 36, TensorType.IQ4_NL: 34, TensorType.MXFP4: 36},
    **{TensorType.Q4_K: 148, TensorType.Q5_K: 276, TensorType.Q6_K: 210},
    **{TensorType.Q2_K: 228, TensorType.Q3_K: 210, TensorType.IQ4_XS: 288},
}
"""Bytes of a block in `hotset.backends.gpu.layouts`, which imports torch; others' numbers are float16."""


def gpu_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes on a GPU: vectors and biases are float32 there, matrices laid out."""
    count = math.prod(tensor.shape)
    if len(tensor.shape) == 1 or tensor.name.endswith("bias"):
        return 4 * count
    if tensor.scale is not None or tensor.type not in (*_FLOATS, *_GPU_BLOCKS):
        return 2 * count
    return count // tensor.type.block_size * _GPU_BLOCKS.get(tensor.type, tensor.type.block_bytes)


def neuron_type(type: TensorType, columns: int) -> TensorType:
    """The nearest type of which single neurons can be computed, for rows of so many numbers."""
    nearest = type if type in NEURON_TYPES else _NEAREST.get(type, TensorType.Q8_0)
    return nearest if columns % nearest.block_size == 0 else TensorType.F16


def dequantise(tensor: Tensor, rows: NDArray[np.integer] | None = None) -> F32:
    """A matrix, or these rows of it; `IndexError` names one that it has not."""
    if rows is None:
        rows = np.arange(tensor.shape[0])
    out = np.empty((len(rows), tensor.shape[1]), np.float32)
    indices = rows.astype(np.int32, copy=False)
    _native.gather(native_type(tensor.type), tensor.data, tensor.shape[0], indices, out, tensor.shape[1])
    return out if tensor.scale is None else out * tensor.scale


def round_to_nearest(name: str, values: F32, type: TensorType, threads: int = 1) -> Tensor:
    """A matrix (rows, cols), cols a multiple of 32, as Q4_0, Q4_1 or Q8_0, as GGUF's reference rounds.

    Raises `CheckpointError` for numbers that are not finite.
    """
    out = np.empty(values.size // type.block_size * type.block_bytes, np.uint8)
    try:
        _native.round_to_nearest(int(type), np.ascontiguousarray(values), out, threads)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be stored as {type.name}: {error}") from None
    return Tensor(name, type, values.shape, out)


def store_as(name: str, values: F32, type: TensorType, threads: int = 1) -> Tensor:
    """A matrix (n, k) as one of `NEURON_TYPES`, k in whole blocks; `HotsetError` for numbers beyond it."""
    if type is not TensorType.F16:
        return round_to_nearest(name, values, type, threads)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        if not np.isfinite(values).all():
            raise HotsetError(f"{name} has numbers that are not finite: the model's file is damaged")
        raise HotsetError(
            f"{name} has numbers beyond 65504, which f16 cannot hold: use hotset convert --ffn q8_0"
        )
    return Tensor(name, type, values.shape, halves.reshape(-1).view(np.uint8))
