"""Blocks of a matrix's columns."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotset.formats.tensor import Tensor, TensorType

TYPES = [TensorType.F32, TensorType.F16, TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_1]


@given(
    type=st.sampled_from(TYPES), rows=st.integers(1, 5), cuts=st.tuples(st.integers(0, 4), st.integers(0, 4))
)
def test_columns_are_the_same_numbers(type: TensorType, rows: int, cuts: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal((rows, 128)).astype(np.float32)
    data = gguf.quantize(values, gguf.GGMLQuantizationType(int(type)))
    tensor = Tensor("w", type, values.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    start, stop = 32 * min(cuts), 32 * max(cuts)
    if start == stop:
        return
    part = tensor.columns(start, stop)
    assert part.shape == (rows, stop - start)
    assert np.array_equal(part.to_float32(), tensor.to_float32()[:, start:stop])


@pytest.mark.parametrize(("start", "stop"), [(0, 48), (16, 64), (64, 64), (0, 160), (-32, 32)])
def test_no_columns_within_a_block(start: int, stop: int) -> None:
    blocks = np.zeros(2 * 128 // 32 * 18, np.uint8)
    with pytest.raises(ValueError, match="no blocks of 32"):
        Tensor("w", TensorType.Q4_0, (2, 128), blocks).columns(start, stop)
