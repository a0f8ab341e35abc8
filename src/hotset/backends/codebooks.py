"""Codebooks of the types that have them, from the `gguf` library, as the native code wants them."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.formats.tensor import TensorType

_SAME = {TensorType.IQ1_M: "IQ1_S"}
CODEBOOK_TYPES = (
    *(TensorType.IQ1_S, TensorType.IQ1_M, TensorType.IQ2_XXS, TensorType.IQ2_XS, TensorType.IQ2_S),
    *(TensorType.IQ3_XXS, TensorType.IQ3_S),
)


@cache
def native_type(type: TensorType) -> int:
    """The type's number, after the native code has been told its codebook."""
    if type in CODEBOOK_TYPES:
        _native.set_codebook(int(type), entries(type))
    return int(type)


def entries(type: TensorType) -> NDArray[np.uint8]:
    """Entry after entry, of every column the number of its magnitude, or of IQ1's values, from the least."""
    from gguf import quants

    book = getattr(quants, _SAME.get(type, type.name))
    book.init_grid()
    numbers: NDArray[np.intp] = np.unique(book.grid, return_inverse=True)[1]
    return np.ascontiguousarray(numbers.reshape(-1).astype(np.uint8))
