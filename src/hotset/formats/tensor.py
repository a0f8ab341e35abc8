"""A tensor as it lies in a file: a type, a shape and raw bytes."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class TensorType(IntEnum):
    """Element types that Hotset reads, numbered as in GGUF."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40

    @property
    def block_size(self) -> int:
        """Elements in one block; a row holds whole blocks."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCKS[self][1]


_BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.IQ4_NL: (32, 18),
    TensorType.MXFP4: (32, 17),
    TensorType.NVFP4: (64, 36),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.IQ4_XS: (256, 136),
    TensorType.IQ1_S: (256, 50),
    TensorType.IQ1_M: (256, 56),
    TensorType.IQ2_XXS: (256, 66),
    TensorType.IQ2_XS: (256, 74),
    TensorType.IQ2_S: (256, 82),
    TensorType.IQ3_XXS: (256, 98),
    TensorType.IQ3_S: (256, 110),
    TensorType.TQ1_0: (256, 54),
    TensorType.TQ2_0: (256, 66),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
}


IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS stand for."""
FP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice what the codes of MXFP4 and NVFP4 stand for."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named tensor; ``data`` is a flat uint8 view, often of a mapped file, of exactly ``nbytes`` bytes."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    """In NumPy order: a matrix is (rows, columns), and a row's numbers are contiguous."""
    data: NDArray[np.uint8]
    scale: NDArray[np.float32] | None = None
    """What all its numbers are multiplied with (1,), or those of each part of the first of three axes."""

    @property
    def nbytes(self) -> int:
        """Size of the tensor in its own type."""
        return self.data.nbytes

    def rows(self, start: int, stop: int) -> "Tensor":
        """The matrix of rows [start, stop), a view."""
        row_bytes = self.nbytes // self.shape[0]
        data = self.data[start * row_bytes : stop * row_bytes]
        scale = self.scale[start:stop] if self.scale is not None and len(self.shape) == 3 else self.scale
        return Tensor(self.name, self.type, (stop - start, *self.shape[1:]), data, scale)

    def part(self, index: int) -> "Tensor":
        """Part `index` of the first axis, a view: of (E, F, D) the matrix (F, D) of one expert."""
        nbytes = self.nbytes // self.shape[0]
        data = self.data[index * nbytes : (index + 1) * nbytes]
        scale = None if self.scale is None else self.scale[index : index + 1]
        return Tensor(self.name, self.type, self.shape[1:], data, scale)

    def columns(self, start: int, stop: int) -> "Tensor":
        """The matrix of columns [start, stop), a copy of their blocks: nothing is rounded.

        `start` and `stop` are whole blocks, or the matrix's end; `ValueError` otherwise.
        """
        rows, columns = self.shape
        size = self.type.block_size
        if not 0 <= start < stop <= columns or start % size or (stop % size and stop != columns):
            raise ValueError(f"{self.name}: columns {start} to {stop} of {columns} are no blocks of {size}")
        blocks = self.data.reshape(rows, -1, self.type.block_bytes)
        data = np.ascontiguousarray(blocks[:, start // size : -(-stop // size)]).reshape(-1)
        return Tensor(self.name, self.type, (rows, stop - start), data, self.scale)

    def to_float32(self) -> NDArray[np.float32]:
        """Dequantise: float32 of ``shape``, for F32 without a scale a read-only view; blocks by `gguf`."""
        values: NDArray[np.generic]
        if self.type is TensorType.F32:
            values = self.data.view(np.float32)
        elif self.type is TensorType.F16:
            values = self.data.view(np.float16).astype(np.float32)
        elif self.type is TensorType.BF16:  # the upper half of a float32
            values = (self.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            from gguf import GGMLQuantizationType, dequantize

            rows = self.data.reshape(*self.shape[:-1], -1)
            values = dequantize(rows, GGMLQuantizationType(self.type))
        numbers = np.asarray(values, dtype=np.float32).reshape(self.shape)
        if self.scale is None:
            return numbers
        return numbers * self.scale.reshape(-1, *[1] * (len(self.shape) - 1))


def tensor_from_array(name: str, values: NDArray[np.float32]) -> Tensor:
    """Wrap a float32 array as an F32 tensor of the same shape."""
    data = np.ascontiguousarray(values, dtype=np.float32)
    return Tensor(name, TensorType.F32, data.shape, data.reshape(-1).view(np.uint8))
