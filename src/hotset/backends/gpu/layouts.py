"""Weights as the GPU kernels read them: the same numbers in another order of bytes, nothing rounded.

A row's columns come in blocks of 32. The codes of a block are 16 bytes, which one thread loads at once; scales
stand in arrays of their own. Four bits and fewer lie so that a mask takes a code out of a 32-bit word:

- codes of 4 bits: bits ``8 b + 4 h`` of word ``j`` are column ``16 h + 4 j + b`` (GGUF's Q4_0);
- a fifth bit: bit ``c`` of the block's word is column ``c``;
- the upper two of 6 bits, and codes of 2 bits: bits ``8 b + 2 j`` of word ``h`` are column ``16 h + 4 j + b``.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from hotset.backends.base import F32
from hotset.backends.low_bit import two_bit_blocks
from hotset.formats.tensor import Tensor, TensorType

Bytes = NDArray[np.uint8]


class Kind(IntEnum):
    """How a layout's arrays are read; `kernels.tiles` has the same numbers."""

    FLOAT = 0
    """``codes`` (R, C) is the weight itself: float32, float16 or bfloat16."""
    Q8 = 1
    """``codes`` (R, C) int8 times ``scales`` (R, C/32) float16."""
    Q4 = 2
    """4-bit codes less 8, times ``scales`` (R, C/32)."""
    Q4_MIN = 3
    """4-bit codes times ``scales`` (R, C/32, 2)[..., 0], plus [..., 1]."""
    Q4_K = 4
    """4-bit codes times d s, less dmin m; ``scales`` (R, C/32, 2) uint8 are s, m; ``supers`` d, dmin."""
    Q5 = 5
    """As Q4, with a fifth bit, less 16."""
    Q5_MIN = 6
    """As Q4_MIN, with a fifth bit."""
    Q5_K = 7
    """As Q4_K, with a fifth bit."""
    Q6_K = 8
    """6-bit codes less 32, times ``scales`` (R, C/16) int8 and ``supers`` (R, C/256) float16."""
    Q2 = 9
    """2-bit codes less 1.5, times ``scales`` (R, C/32): `hotset.backends.low_bit`."""


@dataclass(frozen=True)
class Layout:
    """A matrix (rows, cols); arrays that its kind has not are None. bfloat16 stands as uint16."""

    kind: Kind
    rows: int
    cols: int
    codes: NDArray[np.generic]
    high: NDArray[np.int32] | None = None
    scales: NDArray[np.generic] | None = None
    supers: NDArray[np.float16] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in (self.codes, self.high, self.scales, self.supers) if a is not None)


_FLOATS = {TensorType.F32: "<f4", TensorType.F16: "<f2", TensorType.BF16: "<u2"}


def layout(weight: Tensor) -> Layout:
    """Lay out a matrix (rows, cols) of any readable type; ``data`` has to hold whole rows."""
    rows, cols = weight.shape
    kind = weight.type
    if kind in _FLOATS:
        return Layout(Kind.FLOAT, rows, cols, weight.data.view(_FLOATS[kind]).reshape(rows, cols))
    raw = weight.data.reshape(rows, cols // kind.block_size, kind.block_bytes)
    if kind is TensorType.Q8_0:
        codes = np.ascontiguousarray(raw[..., 2:]).view(np.int8).reshape(rows, cols)
        return Layout(Kind.Q8, rows, cols, codes, scales=_halves(raw[..., :2])[..., 0])
    if kind is TensorType.Q4_0:
        return Layout(Kind.Q4, rows, cols, _words(raw[..., 2:]), scales=_halves(raw[..., :2])[..., 0])
    if kind is TensorType.Q4_1:
        return Layout(Kind.Q4_MIN, rows, cols, _words(raw[..., 4:]), scales=_halves(raw[..., :4]))
    if kind is TensorType.Q5_0:
        high = _words(raw[..., 2:6])[..., 0]
        return Layout(Kind.Q5, rows, cols, _words(raw[..., 6:]), high, _halves(raw[..., :2])[..., 0])
    if kind is TensorType.Q5_1:
        high = _words(raw[..., 4:8])[..., 0]
        return Layout(Kind.Q5_MIN, rows, cols, _words(raw[..., 8:]), high, _halves(raw[..., :4]))
    if kind is TensorType.Q6_K:
        return _six_bits(raw, rows, cols)
    # Q4_K and Q5_K: two blocks of 32 in the low and high nibbles of 32 bytes.
    scales, supers = _block_scales(raw[..., 4:16]).reshape(rows, -1, 2), _halves(raw[..., :4])
    codes = _nibbles(_halves_of_bytes(raw[..., -128:].reshape(rows, -1, 4, 32))).reshape(rows, -1, 4)
    if kind is TensorType.Q4_K:
        return Layout(Kind.Q4_K, rows, cols, codes, scales=scales, supers=supers)
    bits = raw[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    high = _words(np.packbits(bits, axis=-1, bitorder="little")).reshape(rows, -1)
    return Layout(Kind.Q5_K, rows, cols, codes, high, scales, supers)


def two_bit_layout(weight: F32) -> Layout:
    """The two-bit copy (`two_bit_blocks`) of a matrix (rows, cols), cols a multiple of 32."""
    rows, cols = weight.shape
    raw = two_bit_blocks(weight)
    return Layout(Kind.Q2, rows, cols, _words(raw[..., 2:]), scales=_halves(raw[..., :2])[..., 0])


def _six_bits(raw: Bytes, rows: int, cols: int) -> Layout:
    """Q6_K: halves of 128 columns; 64 bytes of low nibbles and 32 of the upper bits to each."""
    low = _halves_of_bytes(raw[..., :128].reshape(rows, -1, 64)).reshape(rows, -1, 32)
    packed = raw[..., 128:192].reshape(rows, -1, 1, 32)
    upper = packed >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3  # (rows, halves, 4, 32)
    high = np.zeros((rows, cols // 32, 2, 4), np.uint8)  # column 16 h + 4 j + b at (h, b), bits 2 j
    for j in range(4):
        high |= upper.reshape(rows, -1, 2, 4, 4)[:, :, :, j] << np.uint8(2 * j)
    return Layout(
        Kind.Q6_K,
        rows,
        cols,
        _nibbles(low),
        _words(high)[..., 0],
        np.ascontiguousarray(raw[..., 192:208]).view(np.int8).reshape(rows, -1),
        _halves(raw[..., 208:])[..., 0],
    )


def _words(raw: Bytes) -> NDArray[np.int32]:
    return np.ascontiguousarray(raw).view("<i4")


def _halves(raw: Bytes) -> NDArray[np.float16]:
    return np.ascontiguousarray(raw).view("<f2")


def _halves_of_bytes(raw: Bytes) -> Bytes:
    """(..., n) bytes: their low nibbles, then their high ones, (..., 2, n)."""
    return np.stack([raw & 15, raw >> 4], axis=-2)


def _nibbles(codes: Bytes) -> NDArray[np.int32]:
    """Pack codes (..., 32): (..., 4) words."""
    return _words(codes[..., :16] | codes[..., 16:] << 4)


def _block_scales(raw: Bytes) -> Bytes:
    """The 6-bit scales and minima of eight blocks in 12 bytes, (..., 12): (..., 8, 2)."""
    a, b, c = raw[..., :4], raw[..., 4:8], raw[..., 8:]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=-1)
    minima = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=-1)
    return np.stack([scales, minima], axis=-1)
