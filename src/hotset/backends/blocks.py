"""Quantised blocks to numbers and back, by native code: what the `gguf` library gives, to the bit."""

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.contract import F32
from hotset.core.errors import CheckpointError
from hotset.formats.tensor import Tensor, TensorType


def dequantise(tensor: Tensor, rows: NDArray[np.integer] | None = None) -> F32:
    """A matrix, or these rows of it; `IndexError` names one that it has not."""
    if rows is None:
        rows = np.arange(tensor.shape[0])
    out = np.empty((len(rows), tensor.shape[1]), np.float32)
    indices = rows.astype(np.int32, copy=False)
    _native.gather(int(tensor.type), tensor.data, tensor.shape[0], indices, out, tensor.shape[1])
    return out


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
