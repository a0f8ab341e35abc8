"""Rounding to blocks: the `gguf` library's bytes."""

import gguf
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hotset.backends.blocks import dequantise, round_to_nearest
from hotset.backends.contract import F32
from hotset.core.errors import CheckpointError
from hotset.formats.tensor import TensorType

TYPES = [TensorType.Q4_0, TensorType.Q4_1, TensorType.Q8_0]
by_type = pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)


def by_library(values: F32, type: TensorType) -> F32:
    return gguf.quantize(values, gguf.GGMLQuantizationType(int(type)))


def numbers() -> F32:
    values = np.random.default_rng(0).standard_t(5, (70, 320)).astype(np.float32)
    values[1] *= 1e-6  # scales that are subnormal in half precision, and none
    values[2] *= 1e-9
    values[3] = 0
    values[4] = -0.375
    values[5] = np.round(values[5] * 4) / 4  # halves of steps
    values[6, ::32], values[6, 7::32] = 9, -9  # of two that are largest, the first counts
    values[7, ::32], values[7, 7::32] = -9, 9
    values[8] *= 60000 / np.abs(values[8]).max()
    values[9] = np.arange(-160, 160)
    return values


@by_type
@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_are_the_librarys(type: TensorType, threads: int) -> None:
    values = numbers()
    found = round_to_nearest("w", values, type, threads)
    assert (found.name, found.type, found.shape) == ("w", type, values.shape)
    np.testing.assert_array_equal(found.data.reshape(len(values), -1), by_library(values, type))
    np.testing.assert_array_equal(dequantise(found, np.array([8, 5, 5])), found.to_float32()[[8, 5, 5]])
    turned = values[:64].T  # not contiguous
    np.testing.assert_array_equal(
        round_to_nearest("w", turned, type).data.reshape(len(turned), -1), by_library(turned, type)
    )


@by_type
@given(arrays(np.float32, (1, 32), elements=st.floats(-64000, 64000, width=16)), st.integers(-20, 0))
@example(np.full((1, 32), 65504, np.float32), 0)
def test_any_numbers_are_the_librarys(type: TensorType, values: F32, exponent: int) -> None:
    values = np.ldexp(values, exponent)
    expected = gguf.dequantize(by_library(values, type), gguf.GGMLQuantizationType(int(type)))
    np.testing.assert_array_equal(round_to_nearest("w", values, type).to_float32(), expected)


@by_type
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(type: TensorType, value: float) -> None:
    values = numbers()
    values[60, 3] = value
    with pytest.raises(CheckpointError, match=f"blk.0.w cannot be stored as {type.name}: .*finite numbers$"):
        round_to_nearest("blk.0.w", values, type)


@by_type
def test_numbers_beyond_a_scale_stay_finite(type: TensorType) -> None:
    values = np.linspace(-3e38, 3e38, 64, dtype=np.float32).reshape(2, 32)
    assert np.isfinite(round_to_nearest("w", values, type).to_float32()).all()
