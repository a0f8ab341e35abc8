"""Weights as the GPU kernels read them: the same numbers in another order of bytes, nothing rounded,
but for types that become float16 (`layout`).

A row's columns come in chunks of 32, whose codes one thread loads at once. The words of a chunk belong to
neighbouring columns, as the numbers that they are multiplied with are loaded: field ``k`` of word ``w`` of
``W`` is column ``W k + w`` of the chunk. So the fields at one place in a word's four bytes are every eighth
column, for any number of bits. Scales stand in arrays of their own.

| codes | a chunk's words | GGUF types |
| --- | --- | --- |
| 8 bits | 8 of 32 bits | Q8_0; those at which a fifth bit, or a table's values, cost a byte |
| 6 bits | 4 of 32 bits: the lower four; 4 of 16 bits: the upper two | Q6_K; Q2_K and Q3_K |
| 4 bits | 4 of 32 bits | Q4_0, Q4_1, Q4_K |
| 2 bits | 2 of 32 bits | none: `hotset.backends.low_bit` |

A fifth bit have Q5_0, Q5_1 and Q5_K, tables IQ4_NL, IQ4_XS and MXFP4. Matrices are laid out on the device, a
few rows at a time, so that one needs hardly more than its own room.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import torch

from hotset.backends.blocks import dequantise
from hotset.backends.contract import F32
from hotset.backends.gpu.device import Gpu
from hotset.backends.low_bit import two_bit_blocks
from hotset.formats.tensor import FP4_DOUBLED, IQ4_NL, Tensor, TensorType

Torch: TypeAlias = Any

_AT_ONCE = 1 << 22
"""Bytes of a matrix that are laid out at once."""


class Scales(IntEnum):
    """How codes become weights; `kernels.tiles` compares with these numbers."""

    NONE = 0
    """They are the weights: float32, float16 or bfloat16."""
    PLAIN = 1
    """Less half their range, times ``scales`` (R, C/32), float16 or float32."""
    MINIMA = 2
    """Times float16 ``scales`` (R, C/32, 2)[..., 0], plus [..., 1]."""
    SUPER = 3
    """Times d s, less dmin m: ``scales`` (R, C/32, 2) uint8 are s, m; ``supers`` (R, C/256, 2) d, dmin."""
    SUPER_16 = 4
    """Less 32, times ``scales`` (R, C/16) int8 times float16 ``supers`` (R, C/256)."""
    SUPER_MINIMA_16 = 5
    """Less 32, times d s, less dmin m: as SUPER, but ``scales`` are (R, C/16, 2)."""


@dataclass(frozen=True)
class Layout:
    """A matrix (rows, cols) on the device; arrays that it has not are None."""

    bits: int
    """Of a code; 0: the weights themselves."""
    scaled: Scales
    rows: int
    cols: int
    codes: Torch
    high: Torch | None = None
    scales: Torch | None = None
    supers: Torch | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.codes, self.high, self.scales, self.supers)
        return sum(a.numel() * a.element_size() for a in arrays if a is not None)


Arrays: TypeAlias = tuple[Torch, Torch | None, Torch | None, Torch | None]
"""Codes, high, scales, supers, each with the matrix's rows."""

_FLOATS = {TensorType.F32: torch.float32, TensorType.F16: torch.float16, TensorType.BF16: torch.bfloat16}


def layout(gpu: Gpu, weight: Tensor) -> Layout:
    """Lay out a matrix (rows, cols) of any readable type.

    Of types with codebooks, of ternary ones, NVFP4 and what has a scale, the numbers become float16: each
    errs by 2^-11 of itself.
    """
    rows, cols = weight.shape
    if weight.type in _FLOATS and weight.scale is None:
        codes = gpu.upload(weight.data).view(_FLOATS[weight.type]).reshape(rows, cols)
        return Layout(0, Scales.NONE, rows, cols, codes)
    if weight.type not in _TYPES or weight.scale is not None:
        codes = torch.empty((rows, cols), dtype=torch.float16, device=gpu.device)
        step = max(1, _AT_ONCE // (4 * cols))
        for start in range(0, rows, step):
            numbers = dequantise(weight.rows(start, min(start + step, rows)))
            codes[start : start + len(numbers)] = gpu.upload(numbers.astype(np.float16))
        return Layout(0, Scales.NONE, rows, cols, codes)
    bits, scaled, arrange = _TYPES[weight.type]
    step = max(1, _AT_ONCE * rows // weight.nbytes)
    whole: list[Torch | None] = []
    for start in range(0, rows, step):
        part = weight.rows(start, min(start + step, rows))
        raw = gpu.upload(part.data).view(part.shape[0], -1, weight.type.block_bytes)
        arrays = arrange(raw)
        if not whole:
            whole = [
                None if a is None else torch.empty((rows, *a.shape[1:]), dtype=a.dtype, device=a.device)
                for a in arrays
            ]
        for array, filled in zip(whole, arrays, strict=True):
            if array is not None:
                array[start : start + part.shape[0]] = filled
    return Layout(bits, scaled, rows, cols, *whole)


def two_bit_layout(gpu: Gpu, weight: F32) -> Layout:
    """The two-bit copy (`two_bit_blocks`) of a matrix (rows, cols), cols a multiple of 32."""
    rows, cols = weight.shape
    raw = gpu.upload(two_bit_blocks(weight))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=gpu.device)
    packed = raw[..., 2:].reshape(rows, -1, 2, 1, 4)
    # Bits 2 i of byte 4 h + b: column 16 h + 4 i + b; as fields k of two words: column 2 k + w.
    codes = (packed >> shifts[:, None] & 3).reshape(rows, -1, 4, 4, 2)
    words = codes[..., 0, :] | codes[..., 1, :] << 2 | codes[..., 2, :] << 4 | codes[..., 3, :] << 6
    codes = words.transpose(-1, -2).contiguous().view(torch.int32)[..., 0]
    return Layout(2, Scales.PLAIN, rows, cols, codes, scales=_halves(raw[..., :2])[..., 0])


def _q8_0(raw: Torch) -> Arrays:
    return _bytes(raw[..., 2:] ^ 128), None, _halves(raw[..., :2])[..., 0], None


def _q5_0(raw: Torch) -> Arrays:
    codes = _halves_of_bytes(raw[..., 6:]) | _bits(raw[..., 2:6]) << 4
    return _bytes(codes + 112), None, _halves(raw[..., :2])[..., 0], None


def _q5_1(raw: Torch) -> Arrays:
    codes = _halves_of_bytes(raw[..., 8:]) | _bits(raw[..., 4:8]) << 4
    return _bytes(codes), None, _halves(raw[..., :4]), None


def _q4_0(raw: Torch) -> Arrays:
    return _nibbles(_halves_of_bytes(raw[..., 2:])), None, _halves(raw[..., :2])[..., 0], None


def _q4_1(raw: Torch) -> Arrays:
    return _nibbles(_halves_of_bytes(raw[..., 4:])), None, _halves(raw[..., :4]), None


def _q4_k(raw: Torch) -> Arrays:
    codes = _halves_of_bytes(raw[..., 16:].unflatten(-1, (4, 32))).flatten(1, -2).unflatten(-1, (2, 32))
    return _nibbles(codes.flatten(1, -2)), None, _block_scales(raw[..., 4:16]), _halves(raw[..., :4])


def _q5_k(raw: Torch) -> Arrays:
    low = _halves_of_bytes(raw[..., 48:].unflatten(-1, (4, 32))).reshape(len(raw), -1, 8, 32)
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)[:, None]
    codes = low | (raw[..., None, 16:48] >> shifts & 1) << 4
    return _bytes(codes), None, _block_scales(raw[..., 4:16]), _halves(raw[..., :4])


def _iq4_nl(raw: Torch) -> Arrays:
    codes = _values(_halves_of_bytes(raw[..., 2:]), IQ4_NL)
    return _bytes(codes), None, _halves(raw[..., :2])[..., 0], None


def _mxfp4(raw: Torch) -> Arrays:
    codes = _values(_halves_of_bytes(raw[..., 1:]), FP4_DOUBLED)
    exponents = raw[..., 0].to(torch.int32)
    bits = torch.where(exponents < 2, 0x00200000 << exponents, exponents - 1 << 23)
    return _bytes(codes), None, bits.view(torch.float32), None


def _iq4_xs(raw: Torch) -> Arrays:
    codes = _values(_halves_of_bytes(raw[..., 8:].unflatten(-1, (8, 16))), IQ4_NL)
    groups = torch.arange(8, dtype=torch.int32, device=raw.device)
    high = raw[..., 2:4].contiguous().view(torch.int16).to(torch.int32) >> 2 * groups & 3
    low = torch.stack([raw[..., 4:8] & 15, raw[..., 4:8] >> 4], dim=-1).flatten(-2)
    factors = (low.to(torch.int32) | high << 4) - 32
    return _bytes(codes), None, (_halves(raw[..., :2]).float() * factors).flatten(1), None


def _q2_k(raw: Torch) -> Arrays:
    scales = torch.stack([raw[..., :16] & 15, raw[..., :16] >> 4], dim=-1).flatten(1, 2)
    return *_six_bits(_two_bits(raw[..., 16:80]) + 32), scales, _halves(raw[..., 80:84])


def _q3_k(raw: Torch) -> Arrays:
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)[:, None]
    codes = _two_bits(raw[..., 32:96]) + 4 * (raw[..., None, :32] >> shifts & 1) + 28
    low = torch.cat([raw[..., 96:104] & 15, raw[..., 96:104] >> 4], dim=-1)
    high = raw[..., None, 104:108] >> torch.arange(0, 8, 2, dtype=torch.uint8, device=raw.device)[:, None] & 3
    factors = (low | high.flatten(-2) << 4).view(torch.int8) - 32
    return *_six_bits(codes), factors.flatten(1), _halves(raw[..., 108:])[..., 0]


def _q6_k(raw: Torch) -> Arrays:
    """Halves of 128 columns: 64 bytes of lower nibbles and 32 of the upper bits to each."""
    low = _halves_of_bytes(raw[..., :128].unflatten(-1, (2, 64))).reshape(len(raw), -1, 32)
    codes = low | _two_bits(raw[..., 128:192]).reshape(low.shape) << 4
    factors = raw[..., 192:208].contiguous().view(torch.int8).flatten(1)
    return *_six_bits(codes), factors, _halves(raw[..., 208:])[..., 0]


_TYPES: dict[TensorType, tuple[int, Scales, Callable[[Torch], Arrays]]] = {
    TensorType.Q8_0: (8, Scales.PLAIN, _q8_0),
    TensorType.Q5_0: (8, Scales.PLAIN, _q5_0),
    TensorType.Q5_1: (8, Scales.MINIMA, _q5_1),
    TensorType.Q5_K: (8, Scales.SUPER, _q5_k),
    TensorType.Q4_0: (4, Scales.PLAIN, _q4_0),
    TensorType.Q4_1: (4, Scales.MINIMA, _q4_1),
    TensorType.Q4_K: (4, Scales.SUPER, _q4_k),
    TensorType.Q6_K: (6, Scales.SUPER_16, _q6_k),
    TensorType.Q2_K: (6, Scales.SUPER_MINIMA_16, _q2_k),
    TensorType.Q3_K: (6, Scales.SUPER_16, _q3_k),
    TensorType.IQ4_NL: (8, Scales.PLAIN, _iq4_nl),
    TensorType.IQ4_XS: (8, Scales.PLAIN, _iq4_xs),
    TensorType.MXFP4: (8, Scales.PLAIN, _mxfp4),
}


def _halves(raw: Torch) -> Torch:
    """Bytes (..., 2 n) as float16 (..., n)."""
    return raw.contiguous().view(torch.float16)


def _bits(raw: Torch) -> Torch:
    """Bytes (..., n) as bits (..., 8 n), the lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return (raw[..., None] >> shifts & 1).flatten(-2)


def _halves_of_bytes(raw: Torch) -> Torch:
    """(..., n) bytes: their low nibbles, then their high ones, (..., 2 n)."""
    return torch.cat([raw & 15, raw >> 4], dim=-1)


def _two_bits(raw: Torch) -> Torch:
    """Codes (R, n, 8, 32) of 64 bytes (R, n, 64): 128 columns to each 32 of them."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=raw.device)[:, None]
    return (raw.unflatten(-1, (2, 1, 32)) >> shifts & 3).flatten(-3, -2)


def _values(places: Torch, table: tuple[int, ...]) -> Torch:
    """The table's values at these places, plus 128."""
    values = torch.tensor(table, dtype=torch.int16, device=places.device) + 128
    return values.to(torch.uint8)[places.long()]


def _six_bits(codes: Torch) -> tuple[Torch, Torch]:
    """Words of the lower four bits and half words of the upper two of codes (R, ...), 32 to a chunk."""
    codes = codes.reshape(len(codes), -1, 32)
    upper = (codes >> 4).unflatten(-1, (2, 4, 4))
    # Bits 2 k of half word w are column 4 k + w.
    high = upper[..., 0, :] | upper[..., 1, :] << 2 | upper[..., 2, :] << 4 | upper[..., 3, :] << 6
    return _nibbles(codes & 15), high.transpose(-1, -2).contiguous().view(torch.int16)[..., 0]


def _bytes(codes: Torch) -> Torch:
    """Words (R, chunks, 8) of byte codes (R, ...): field k of word w is column 8 k + w."""
    chunks = codes.reshape(len(codes), -1, 4, 8)
    return chunks.transpose(-1, -2).contiguous().view(torch.int32)[..., 0]


def _nibbles(codes: Torch) -> Torch:
    """Words (R, chunks, 4) of codes (R, chunks, 32): field k of word w is column 4 k + w."""
    chunks = codes.unflatten(-1, (4, 2, 4))
    pairs = chunks[..., 0, :] | chunks[..., 1, :] << 4
    return pairs.transpose(-1, -2).contiguous().view(torch.int32)[..., 0]


def _block_scales(raw: Torch) -> Torch:
    """The 6-bit scales and minima of eight blocks in 12 bytes, (R, n, 12): (R, 8 n, 2)."""
    a, b, c = raw[..., :4], raw[..., 4:8], raw[..., 8:]
    scales = torch.cat([a & 63, c & 15 | a >> 6 << 4], dim=-1)
    minima = torch.cat([b & 63, c >> 4 | b >> 6 << 4], dim=-1)
    return torch.stack([scales, minima], dim=-1).flatten(1, 2)
