"""The linear kernels of every instruction set of this CPU, against gguf's dequantisation in float64."""

import gguf
import numpy as np
import pytest
from helpers.random_tensors import HALVES, random_tensor
from hotset._kernels import Matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset import _kernels
from hotset._native import kernel_levels
from hotset.backends.blocks import memory_bytes
from hotset.backends.codebooks import CODEBOOK_TYPES, entries
from hotset.formats.tensor import Tensor, TensorType

LEVELS = kernel_levels()
FLOATS = [TensorType.F32, TensorType.F16, TensorType.BF16]
QUANTISED = [type for type in TensorType if type not in FLOATS]
for type in CODEBOOK_TYPES:
    _kernels.set_codebook(type, entries(type))

F64 = NDArray[np.float64]


def random_weights(type: TensorType, rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bytes of a (rows, cols) matrix."""
    data = random_tensor(type, rows, cols, int(rng.integers(1 << 32))).data.copy()
    if type is TensorType.MXFP4:  # powers of two from 2^-17 to 2^2, and one too small for a float
        scales = data.reshape(-1, type.block_bytes)[:, 0]
        scales[:] = rng.integers(110, 130, len(scales))
        scales[-1] = rng.integers(0, 2)
    return data


def dequantise(type: TensorType, data: NDArray[np.uint8], rows: int) -> F64:
    """By gguf: (rows, cols)."""
    if type is TensorType.F32:
        return data.view(np.float32).reshape(rows, -1).astype(np.float64)
    if type is TensorType.F16:
        return data.view(np.float16).reshape(rows, -1).astype(np.float64)
    values = gguf.dequantize(data.reshape(rows, -1), gguf.GGMLQuantizationType(type))
    return values.reshape(rows, -1).astype(np.float64)


def quantise_activations(x: NDArray[np.float32]) -> F64:
    """What the int8 kernels see of x (..., cols): the formulas of csrc/kernels/linear_activations.h."""
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    row_max = np.abs(x).max(axis=-1)[..., None, None]
    factor = row_max / np.float32(127 * 32767)
    factor = np.where(factor >= 1e-37, factor, np.float32(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        to_scale = np.float32(32767) / row_max
        scale = np.clip(np.ceil(np.abs(blocks).max(axis=-1, keepdims=True) * to_scale), 1, 32767)
        inverse = np.float32(1) / (scale * factor)
        q = np.where(factor > 0, np.rint(blocks * inverse), 0)
    assert np.abs(q).max() <= 127
    values = q.astype(np.float64) * scale.astype(np.float64) * factor.astype(np.float64)
    return values.reshape(x.shape)


def expected(type: TensorType, w: F64, x: NDArray[np.float32]) -> tuple[F64, F64]:
    """The product of x (..., cols) with w (rows, cols), and how far float32 sums may be from it."""
    seen = x.astype(np.float64) if type in FLOATS else quantise_activations(x)
    size = np.abs(seen) @ np.abs(w).T
    if HALVES.get(type, [])[1:] or type in (
        TensorType.TQ1_0,
        TensorType.TQ2_0,
    ):  # codes and minima are summed apart
        size *= 8
    if type in FLOATS:  # every product is rounded, not one sum of a block
        size *= 2
    return seen @ w.T, 4e-7 * size + 1e-30


def check(
    type: TensorType, level: str, rows: int, cols: int, tokens: int, seed: int, scale: float = 1.0
) -> None:
    rng = np.random.default_rng(seed)
    data = random_weights(type, rows, cols, rng)
    matrix = Matrix(level, type, data, rows, cols)
    x = (rng.standard_normal((tokens, cols)) * scale).astype(np.float32)
    want, tolerance = expected(type, dequantise(type, data, rows), x)
    if tokens == 1:
        got = matrix.matvec(x[0])
        assert got.shape == (rows,)
        np.testing.assert_array_less(np.abs(got - want[0]), tolerance[0])
    got = matrix.matmul(x)
    assert got.shape == (tokens, rows)
    if type in QUANTISED:  # decode and prefill add in the same order
        np.testing.assert_array_equal(matrix.matvec(x[-1]), got[-1])
    np.testing.assert_array_less(np.abs(got - want), tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
@pytest.mark.parametrize("rows, n_blocks", [(1, 1), (5, 3), (16, 2), (37, 7), (64, 16)])
def test_matvec(type: TensorType, level: str, rows: int, n_blocks: int) -> None:
    check(type, level, rows, n_blocks * max(type.block_size, 32), 1, seed=rows)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
@given(scale=st.floats(1e-20, 1e20), spread=st.floats(0, 12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_any_range_of_activations(
    type: TensorType, level: str, scale: float, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, cols = 9, 2 * max(type.block_size, 32)
    data = random_weights(type, rows, cols, rng)
    x = rng.standard_normal((3, cols)) * 10 ** (rng.random((3, cols)) * -spread)
    x = (x * scale).astype(np.float32)
    want, tolerance = expected(type, dequantise(type, data, rows), x)
    got = Matrix(level, type, data, rows, cols).matmul(x)
    np.testing.assert_array_less(np.abs(got - want), tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
def test_zeros(type: TensorType, level: str) -> None:
    rows, cols = 9, max(type.block_size, 32)
    data = random_weights(type, rows, cols, np.random.default_rng(0))
    matrix = Matrix(level, type, data, rows, cols)
    assert not matrix.matvec(np.zeros(cols, np.float32)).any()
    x = np.zeros((5, cols), np.float32)
    x[1] = 1
    got = matrix.matmul(x)
    assert got[1].any() and not got[[0, 2, 3, 4]].any()
    empty = Matrix(level, type, np.zeros_like(data), rows, cols)
    assert not empty.matmul(x).any()


@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
def test_memory_is_as_told(type: TensorType) -> None:
    data = np.zeros(32 * 4096 // type.block_size * type.block_bytes, np.uint8)
    tensor = Tensor("weight", type, (32, 4096), data)
    assert Matrix(LEVELS[0], type, data, 32, 4096).nbytes == memory_bytes(tensor)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type", [TensorType.NVFP4, TensorType.F16], ids=lambda type: type.name)
@pytest.mark.parametrize("tokens", [1, 3, 37])
def test_a_scale_of_all_weights(type: TensorType, level: str, tokens: int) -> None:
    rng = np.random.default_rng(0)
    data = random_weights(type, 19, 128, rng)
    x = rng.standard_normal((tokens, 128)).astype(np.float32)
    scaled = Matrix(level, type, data, 19, 128, scale=0.3).matmul(x)
    np.testing.assert_array_equal(scaled, Matrix(level, type, data, 19, 128).matmul(x) * np.float32(0.3))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type", FLOATS, ids=lambda type: type.name)
@pytest.mark.parametrize("cols", [1, 7, 31, 65])
def test_float_columns_need_no_multiple(type: TensorType, level: str, cols: int) -> None:
    check(type, level, 19, cols, 1, seed=cols)


def test_kernel_levels_end_with_the_baseline() -> None:
    assert LEVELS[-1] in ("x86_64_v2", "neon")
    assert len(set(LEVELS)) == len(LEVELS)


@pytest.mark.parametrize(
    "type, rows, cols, nbytes, message",
    [
        (TensorType.Q4_0, 4, 33, 72, "cols"),
        (TensorType.Q4_K, 4, 128, 288, "cols"),
        (TensorType.IQ4_XS, 4, 128, 272, "cols"),
        (TensorType.MXFP4, 4, 32, 72, "data: expected 68 bytes, found 72"),
        (TensorType.Q4_0, 0, 32, 0, "rows"),
        (TensorType.Q4_0, 4, 32, 71, "data: expected 72 bytes, found 71"),
        (TensorType.F32, 2**40, 1, 4, "rows"),
        (99, 4, 32, 72, "type"),
    ],
)
def test_wrong_shapes_are_refused(type: int, rows: int, cols: int, nbytes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matrix(LEVELS[0], type, np.zeros(nbytes, np.uint8), rows, cols)


def test_wrong_levels_and_inputs_are_refused() -> None:
    data = np.zeros(4 * 18, np.uint8)
    with pytest.raises(ValueError, match="level: avx1"):
        Matrix("avx1", TensorType.Q4_0, data, 4, 32)
    matrix = Matrix(LEVELS[0], TensorType.Q4_0, data, 4, 32)
    with pytest.raises(ValueError, match="expected rows of 32 numbers, found 31"):
        matrix.matvec(np.zeros(31, np.float32))
    with pytest.raises(ValueError, match="at least one row"):
        matrix.matmul(np.zeros((0, 32), np.float32))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
@pytest.mark.parametrize("rows, n_blocks, tokens", [(1, 1, 2), (7, 3, 37), (40, 35, 17), (24, 9, 150)])
def test_matmul(type: TensorType, level: str, rows: int, n_blocks: int, tokens: int) -> None:
    check(type, level, rows, n_blocks * max(type.block_size, 32), tokens, seed=tokens)
