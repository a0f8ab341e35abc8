"""Products with matrices of every type against NumPy on what `gguf` dequantises.

One token's are sums in float32, activations being 8-bit codes where weights are quantised; those of more
tokens take activations as float16, with bfloat16 weights as tf32, and with float32 weights as they are.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.gpu_arrays import assert_close, to_gpu, to_numpy
from helpers.random_tensors import random_tensor

from hotset.backends.blocks import gpu_bytes
from hotset.backends.codebooks import CODEBOOK_TYPES
from hotset.backends.contract import F32, Linear, Norm
from hotset.backends.gpu.ffn import GpuNorm
from hotset.backends.gpu.layouts import two_bit_layout
from hotset.backends.gpu.matrix import Input, Matrix, build_matrix, matvec_rows
from hotset.backends.low_bit import low_bit_copy
from hotset.core.config import NormKind
from hotset.core.errors import CheckpointError
from hotset.formats.tensor import TensorType

TYPES = list(TensorType)
AS_HALVES = (*CODEBOOK_TYPES, TensorType.TQ1_0, TensorType.TQ2_0, TensorType.NVFP4)
FLOAT32, HALF = 2e-6, 2e-3


def numbers(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrix(
    backend: Any, type: TensorType, rows: int, cols: int, by_neuron: bool = False
) -> tuple[Matrix, F32]:
    tensor = random_tensor(type, rows, cols)
    size = cols if by_neuron else rows
    built = build_matrix(backend.gpu, Linear(tensor, numbers(1, size)), rows, cols, outputs=size)
    return built, tensor.to_float32()


def odd_cols(type: TensorType) -> int:
    """No multiple of a tile: of the type's blocks only."""
    return 1283 if type.block_size == 1 else type.block_size * (37 if type.block_size == 32 else 5)


def tolerance(type: TensorType, tokens: int) -> float:
    return FLOAT32 if type is TensorType.F32 or (tokens == 1 and type not in AS_HALVES) else HALF


def seen(backend: Any, x: F32, quantised: bool) -> F32:
    """Activations (T, C) as the products take them."""
    if len(x) > 1 or not quantised:
        return x
    words = to_numpy(Input(backend.gpu, to_gpu(backend, x)).codes)[0]
    size = x.shape[1]
    # Byte j of a block's word p is column 8 j + p.
    codes = words[: size // 4].view(np.int8).reshape(-1, 8, 4).transpose(0, 2, 1).reshape(-1, 32)
    scales = words[size // 4 :][: size // 32].view(np.float32)
    sums = words[size // 4 + size // 32 :].view(np.float32)
    np.testing.assert_array_equal(sums, codes.reshape(-1, 16).astype(np.float32).sum(axis=1))
    return (codes * scales[:, None]).reshape(x.shape).astype(np.float32)


@pytest.mark.parametrize("size", [32, 96, 1056, 4096])
def test_codes(backend: Any, size: int) -> None:
    """Half a step from the numbers, in blocks of any magnitude; from a norm, the same as of its numbers."""
    x = numbers(1, 1, size).reshape(-1, 32)
    x *= np.array([1, 1e-20, 0, 1e20], np.float32)[np.arange(len(x)) % 4, None]
    found = seen(backend, x.reshape(1, -1), True).reshape(-1, 32)
    assert (np.abs(found - x) <= np.abs(x).max(axis=1, keepdims=True) / 253).all()
    norm = GpuNorm(backend.gpu, Norm(NormKind.RMS, 1e-5, numbers(2, size)), size)
    normed = norm.input(to_gpu(backend, numbers(3, 1, size)))
    codes = to_numpy(normed.codes)
    np.testing.assert_array_equal(codes, to_numpy(Input(backend.gpu, normed.numbers).codes))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("type", TYPES)
def test_rows(backend: Any, type: TensorType, tokens: int) -> None:
    """``W x + b``."""
    built, w = matrix(backend, type, 21, odd_cols(type))
    x = numbers(2, tokens, built.cols)
    out = backend.gpu.empty(tokens, 21)
    built.times(to_gpu(backend, x), out)
    x = seen(backend, x, built.bits > 0)
    assert_close(out, x @ w.T + numbers(1, 21), tolerance(type, tokens))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("type", TYPES)
def test_neurons(backend: Any, type: TensorType, tokens: int) -> None:
    """``h W + b``, where most of h is zero."""
    cols = {1: 259, 32: 288, 64: 320, 256: 512}[type.block_size]
    built, w = matrix(backend, type, 45, cols, by_neuron=True)
    h = np.maximum(numbers(2, tokens, 45) - 1, 0)
    out = backend.gpu.empty(tokens, cols)
    built.sum_rows(to_gpu(backend, h), out, skip=True)
    assert_close(out, h @ w + numbers(1, cols), tolerance(type, tokens))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_few_of_many_neurons(backend: Any, share: float) -> None:
    """Which rows are left out changes nothing, for any number of them."""
    built, w = matrix(backend, TensorType.Q4_0, 2500, 32, by_neuron=True)
    h = numbers(2, 1, 2500) * (np.random.default_rng(3).random((1, 2500)) < share)
    sums = []
    for skip in (True, False):
        out = backend.gpu.empty(1, 32)
        built.sum_rows(to_gpu(backend, h.astype(np.float32)), out, skip=skip)
        sums.append(to_numpy(out))
    assert_close(sums[0], h @ w + numbers(1, 32), FLOAT32)
    assert_close(sums[1], sums[0], FLOAT32)


@pytest.mark.parametrize("type", [TensorType.Q4_0, TensorType.Q6_K, TensorType.F16])
def test_whole_tiles(backend: Any, type: TensorType) -> None:
    """Sizes at which nothing is masked, with several programs, splits, and additions to what is there."""
    built, w = matrix(backend, type, 32, 1024)
    by_neuron, w_t = matrix(backend, type, 128, 256, by_neuron=True)
    built.gpu.multiprocessors, before = 3, built.gpu.multiprocessors
    for tokens in (1, 17):
        x, h = numbers(3, tokens, 1024), numbers(4, tokens, 128)
        out, sums = numbers(5, tokens, 32), numbers(6, tokens, 256)
        on_gpu, sums_on_gpu = to_gpu(backend, out), to_gpu(backend, sums)
        built.times(to_gpu(backend, x), on_gpu, add=True)
        by_neuron.sum_rows(to_gpu(backend, h), sums_on_gpu, add=True)
        x = seen(backend, x, built.bits > 0)
        assert_close(on_gpu, out + x @ w.T + numbers(1, 32), tolerance(type, tokens))
        assert_close(sums_on_gpu, sums + h @ w_t + numbers(1, 256), tolerance(type, tokens))
    built.gpu.multiprocessors = before


@pytest.mark.parametrize("tokens", [2, 9, 33, 70, 130])
def test_tokens(backend: Any, tokens: int) -> None:
    """Every size of tile."""
    built, w = matrix(backend, TensorType.Q4_1, 70, 96)
    x = numbers(2, tokens, 96)
    out = backend.gpu.empty(tokens, 70)
    built.times(to_gpu(backend, x), out)
    assert_close(out, x @ w.T + numbers(1, 70), HALF)


def test_into_columns(backend: Any) -> None:
    """An output whose rows are apart, and a ReLU."""
    built, w = matrix(backend, TensorType.Q8_0, 5, 64)
    for tokens in (1, 2):
        x = numbers(2, tokens, 64)
        out = torch.zeros(tokens, 12, device=backend.gpu.device)
        built.times(to_gpu(backend, x), out[:, 3:8], relu=True)
        x = seen(backend, x, True)
        assert_close(out[:, 3:8], np.maximum(x @ w.T + numbers(1, 5), 0), HALF)
        assert not out[:, :3].any() and not out[:, 8:].any()


def test_activations_beyond_half_precision(backend: Any) -> None:
    """Rows of huge, tiny and no numbers keep their precision."""
    built, w = matrix(backend, TensorType.F16, 16, 64)
    x = numbers(2, 3, 64) * np.array([[1e8], [1e-12], [0]], np.float32)
    built.has_bias = False
    out = backend.gpu.empty(3, 16)
    built.times(to_gpu(backend, x), out)
    expected = x @ w.T
    for row in (0, 1):
        assert_close(out[row], expected[row], HALF)
    assert not out[2].any()


def test_two_bit_copy(backend: Any) -> None:
    weight = numbers(1, 19, 96 * 7)
    built = Matrix(backend.gpu, two_bit_layout(backend.gpu, weight))
    for tokens in (1, 2):
        x = numbers(2, tokens, weight.shape[1])
        out = backend.gpu.empty(tokens, 19)
        built.times(to_gpu(backend, x), out)
        x = seen(backend, x, True)
        assert_close(out, x @ low_bit_copy(weight, 2).T, tolerance(TensorType.Q4_0, tokens))


@pytest.mark.parametrize("type", TYPES)
def test_size(backend: Any, type: TensorType) -> None:
    """About the type's own; a fifth bit costs a byte, and so does a table; two and three bits cost six.

    Plans know it.
    """
    tensor = random_tensor(type, 8, 2048)
    built = build_matrix(backend.gpu, Linear(tensor), 8, 2048)
    assert built.nbytes == gpu_bytes(tensor)
    more = dict.fromkeys((TensorType.Q5_0, TensorType.Q5_1, TensorType.Q5_K), 1.6)
    more |= {TensorType.IQ4_NL: 1.9, TensorType.IQ4_XS: 2.12, TensorType.MXFP4: 2.12}
    more |= {TensorType.Q2_K: 2.72, TensorType.Q3_K: 1.91}
    if type not in AS_HALVES:
        assert built.nbytes <= more.get(type, 1.04) * tensor.nbytes
    scaled = replace(tensor, scale=np.full(1, 0.5, np.float32))
    assert build_matrix(backend.gpu, Linear(scaled), 8, 2048).nbytes == gpu_bytes(scaled)


def test_slabs_of_rows(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix laid out a few rows at a time is the same."""
    from hotset.backends.gpu import layouts

    tensor = random_tensor(TensorType.Q6_K, 11, 512)
    whole = layouts.layout(backend.gpu, tensor)
    monkeypatch.setattr(layouts, "_AT_ONCE", tensor.nbytes // 3)
    parts = layouts.layout(backend.gpu, tensor)
    for name in ("codes", "high", "scales", "supers"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_rows_of_a_program(backend: Any) -> None:
    built, _ = matrix(backend, TensorType.F16, 1024, 32)
    assert [matvec_rows(built, n) for n in (2, 8, 64, 128, 1000)] == [8, 8, 4, 2, 1]
    built, _ = matrix(backend, TensorType.Q4_0, 1024, 32)
    assert matvec_rows(built, 2) == 1


def test_shapes_that_do_not_fit(backend: Any) -> None:
    weight = random_tensor(TensorType.F16, 4, 8)
    with pytest.raises(CheckpointError, match=r"^weight: expected shape \[4, 9\], found \[4, 8\]"):
        build_matrix(backend.gpu, Linear(weight), 4, 9)
    with pytest.raises(CheckpointError, match=r"^weight: bias: expected shape \[4\], found \[3\]"):
        build_matrix(backend.gpu, Linear(weight, numbers(1, 3)), 4, 8)
