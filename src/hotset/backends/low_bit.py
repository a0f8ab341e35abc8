"""Two- and four-bit copies of matrices: cheap predictors of which gates open."""

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.blocks import dequantise, round_to_nearest
from hotset.backends.contract import F32
from hotset.formats.tensor import TensorType

Q2 = _native.TENSOR_TYPES["Q2"]
"""The native type of the two-bit blocks; GGUF has none like it."""

_ROWS = 1024


def two_bit_blocks(weight: F32) -> NDArray[np.uint8]:
    """Blocks of 32 columns (rows, cols / 32, 10): an f16 scale, then codes; ``w = scale * (code - 1.5)``.

    Bits 2 i and 2 i + 1 of byte 4 k + b are column 16 k + 4 i + b. Scales are least squares to the codes that
    the best scale of normal numbers gives (0.9957 deviations: J. Max, 1960), twice refined.
    """
    rows, cols = weight.shape
    blocks = np.empty((rows, cols // 32, 10), np.uint8)
    for start in range(0, rows, _ROWS):
        w = weight[start : start + _ROWS].reshape(-1, cols // 32, 32)
        scale = np.float32(0.9957) * np.sqrt((w * w).mean(axis=-1, keepdims=True))
        for _ in range(2):
            codes = _codes(w, scale)
            levels = codes - np.float32(1.5)
            scale = (w * levels).sum(-1, keepdims=True) / (levels * levels).sum(-1, keepdims=True)
        half = scale.astype("<f2")
        final = _codes(w, half.astype(np.float32)).astype(np.uint8).reshape(*w.shape[:2], 2, 4, 4)
        packed = final[..., 0, :] | final[..., 1, :] << 2 | final[..., 2, :] << 4 | final[..., 3, :] << 6
        out = blocks[start : start + _ROWS]
        out[..., :2] = half.view(np.uint8)
        out[..., 2:] = packed.reshape(*w.shape[:2], 8)
    return blocks


def _codes(w: F32, scale: F32) -> F32:
    codes: F32 = np.clip(np.floor(w / np.where(scale > 0, scale, 1) + 2), 0, 3)
    return codes


def low_bit_copy(weight: F32, bits: int) -> F32:
    """What a 2- or 4-bit (Q4_0) copy of a matrix (rows, cols) holds; cols is a multiple of 32."""
    if bits == 4:
        return dequantise(round_to_nearest("copy", weight, TensorType.Q4_0))
    blocks = two_bit_blocks(weight)
    scale = blocks[..., :2].copy().view("<f2").astype(np.float32)
    packed = blocks[..., 2:].reshape(*blocks.shape[:2], 2, 1, 4) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    copy: F32 = scale * ((packed & 3).reshape(*blocks.shape[:2], 32) - np.float32(1.5))
    return copy.reshape(weight.shape)
