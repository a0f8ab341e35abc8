"""Tensors as they lie in files: rows and float32 values of every type, by the `gguf` library."""

import gguf
import numpy as np
import pytest

from hotset.formats import Tensor, TensorType


@pytest.mark.parametrize("type", TensorType)
def test_values_and_rows(type: TensorType) -> None:
    rng = np.random.default_rng(type)
    row_bytes = 512 // type.block_size * type.block_bytes
    raw = rng.integers(0, 256, (2, 3, row_bytes), dtype=np.uint8)
    raw[..., 1::2] &= 0x3B  # exponents that are finite, whichever byte they are in
    tensor = Tensor("t", type, (2, 3, 512), raw.reshape(-1))
    typed = raw.view({TensorType.F32: np.float32, TensorType.F16: np.float16}.get(type, np.uint8))
    expected = gguf.dequantize(typed, gguf.GGMLQuantizationType(type)).astype(np.float32)
    np.testing.assert_array_equal(tensor.to_float32(), expected.reshape(2, 3, 512))
    np.testing.assert_array_equal(tensor.rows(1, 2).to_float32(), expected.reshape(2, 3, 512)[1:])
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type)] == (type.block_size, type.block_bytes)
