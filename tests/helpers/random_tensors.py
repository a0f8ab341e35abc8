"""Matrices of any bytes in any type, as no quantiser would write them."""

import numpy as np
from numpy.typing import NDArray

from hotset.formats.tensor import Tensor, TensorType, tensor_from_array

HALVES = {
    TensorType.F16: [0],
    TensorType.BF16: [0],
    TensorType.Q4_0: [0],
    TensorType.Q4_1: [0, 2],
    TensorType.Q5_0: [0],
    TensorType.Q5_1: [0, 2],
    TensorType.Q8_0: [0],
    TensorType.Q4_K: [0, 2],
    TensorType.Q5_K: [0, 2],
    TensorType.Q6_K: [208],
    TensorType.Q2_K: [80, 82],
    TensorType.Q3_K: [108],
    TensorType.IQ4_NL: [0],
    TensorType.IQ4_XS: [0],
    TensorType.MXFP4: [],
    TensorType.NVFP4: [],
    TensorType.IQ1_S: [0],
    TensorType.IQ1_M: [],
    TensorType.IQ2_XXS: [0],
    TensorType.IQ2_XS: [0],
    TensorType.IQ2_S: [0],
    TensorType.IQ3_XXS: [0],
    TensorType.IQ3_S: [0],
    TensorType.TQ1_0: [52],
    TensorType.TQ2_0: [64],
}
"""Where the half-precision numbers of a block stand."""


def random_tensor(type: TensorType, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Any codes; scales, and floats themselves, between 2^-8 and 1 with any sign."""
    rng = np.random.default_rng(seed)
    if type is TensorType.F32:
        return tensor_from_array("weight", rng.standard_normal((rows, cols)).astype(np.float32))
    shape = (rows, cols // type.block_size, type.block_bytes)
    data: NDArray[np.uint8] = rng.integers(0, 256, shape).astype(np.uint8)
    for offset in HALVES[type]:
        sign_and_rest = data[..., offset + 1]
        # float16 has 5 bits of exponent here, bfloat16 the upper 7 of 8.
        exponent = (
            rng.integers(60, 64, shape[:2]) if type is TensorType.BF16 else rng.integers(7, 15, shape[:2])
        )
        if type is TensorType.BF16:
            data[..., offset + 1] = sign_and_rest & 0x80 | exponent
        else:
            data[..., offset + 1] = sign_and_rest & 0x83 | exponent << 2
    if type is TensorType.MXFP4:
        data[..., 0] = rng.integers(119, 128, shape[:2])
    if type is TensorType.NVFP4:  # scales between 2^-7 and 2
        data[..., :4] = rng.integers(0, 64, (*shape[:2], 4))
    if type is TensorType.IQ1_M:  # the scale's nibbles are apart, the uppermost in byte 55
        data[..., 55] = data[..., 55] & 0x8F | 0x20
    return Tensor("weight", type, (rows, cols), np.ascontiguousarray(data).reshape(-1))
