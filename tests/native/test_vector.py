"""The vector kernels of every instruction set that this machine has, against NumPy in double precision."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset import _kernels, _native
from hotset.core.config import Activation

KINDS = {activation: number for number, activation in enumerate(Activation)}
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 2}
SIZES = [1, 3, 4, 7, 8, 15, 16, 31, 33, 64, 100, 576, 1000]


@pytest.fixture(scope="module", params=_native.kernel_levels())
def kernels(request: pytest.FixtureRequest) -> Any:
    return _kernels.VectorKernels(request.param)


def numbers(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("layer", [False, True])
def test_norm(kernels: Any, layer: bool, biased: bool, n: int) -> None:
    x, weight = numbers(n, n) + 3, numbers(n + 1, n)
    bias = numbers(n + 2, n) if biased else None
    found = x.copy()
    kernels.norm(layer, found, weight, bias, 1e-5, found)

    exact = x.astype(np.float64) - (x.astype(np.float64).mean() if layer else 0)
    expected = exact / np.sqrt((exact**2).mean() + 1e-5) * weight + (0 if bias is None else bias)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def exact_activation(kind: Activation, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if kind is Activation.RELU2:
        return np.maximum(x, 0) ** 2
    if kind is Activation.SILU:
        return x / (1 + np.exp(-x))
    if kind is Activation.GELU:
        return x * np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x])
    if kind is Activation.SWIGLU_CLAMPED:
        return np.minimum(x, 7) / (1 + np.exp(-1.702 * np.minimum(x, 7)))
    if kind is Activation.GELU_TANH:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return np.maximum(x, 0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", list(Activation))
def test_activation(kernels: Any, kind: Activation, gated: bool) -> None:
    if kind.gated_only and not gated:
        pytest.skip("it has a gate")
    x = np.concatenate([np.linspace(-30, 30, 4001), [0.0, -0.0, 1e-6, -1e-6, 87.5, -87.5, 300, -300]])
    gate, up = x.astype(np.float32), numbers(1, len(x)) if gated else None
    found = gate.copy()
    kernels.activate(KINDS[kind], found, up)

    factor = 1.0 if up is None else up.astype(np.float64)
    if kind is Activation.DRELU:
        factor = np.maximum(factor, 0)
    elif kind is Activation.SWIGLU_CLAMPED:
        factor = np.clip(factor, -7, 7) + 1
    expected = exact_activation(kind, gate.astype(np.float64)) * factor
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [1, 2, 3, 4, 10, 16, 32, 33, 64])
def test_rope(kernels: Any, half: int, interleaved: bool) -> None:
    x, angles = numbers(half, 2 * half + 5), np.linspace(0, 100, half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    found = x.copy()
    if interleaved:
        kernels.rope(found, cos.repeat(2), np.stack([-sin, sin], axis=1).reshape(-1), True)
    else:
        kernels.rope(found, cos, sin, False)

    pairs = x[: 2 * half].reshape(half, 2).T if interleaved else x[: 2 * half].reshape(2, half)
    rotated = (pairs[0] + 1j * pairs[1]) * (cos + 1j * sin)
    expected = np.stack([rotated.real, rotated.imag])
    expected = (expected.T if interleaved else expected).reshape(-1)
    np.testing.assert_allclose(found[: 2 * half], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[2 * half :], x[2 * half :])


def exact_attention(
    q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], window: int
) -> NDArray[np.float64]:
    group = q.shape[1] // k.shape[1]
    keys = k.astype(np.float64).repeat(group, axis=1)
    values = v.astype(np.float64).repeat(group, axis=1)
    scores = np.einsum("thd,shd->hts", q.astype(np.float64), keys)
    distance = np.arange(len(k) - len(q), len(k))[:, None] - np.arange(len(k))[None, :]
    scores = np.where((distance >= 0) & (distance < window), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, values)


@dataclass(frozen=True)
class Case:
    tokens: int
    prefix: int
    head_dim: int
    heads: tuple[int, int]
    window: int
    kv_type: str
    spread: float


CASES = st.builds(
    Case,
    tokens=st.integers(1, 70),
    prefix=st.integers(0, 200),
    head_dim=st.sampled_from([1, 6, 20, 32, 64, 80, 96, 128, 256]),
    heads=st.sampled_from([(1, 1), (2, 2), (3, 1), (9, 3), (8, 2), (5, 5), (7, 1)]),
    window=st.sampled_from([1, 5, 16, 100, 1 << 40]),
    kv_type=st.sampled_from(["f32", "f16", "q8_0"]),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
).filter(lambda case: case.kv_type != "q8_0" or case.head_dim % 32 == 0)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(case=CASES)
def test_attention(kernels: Any, case: Case) -> None:
    positions, (n_heads, n_kv_heads) = case.tokens + case.prefix, case.heads
    q = case.spread * numbers(1, case.tokens, n_heads, case.head_dim) / np.float32(math.sqrt(case.head_dim))
    k, v = (numbers(seed, positions, n_kv_heads, case.head_dim) for seed in (2, 3))
    found = np.full(q.shape, np.nan, np.float32)
    kernels.attention(KV_TYPES[case.kv_type], q, k, v, case.window, found)
    expected = exact_attention(q, stored(k, case.kv_type), stored(v, case.kv_type), case.window)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def stored(x: NDArray[np.float32], kv_type: str) -> NDArray[np.float32]:
    """What a cache of this type keeps of keys or values."""
    if kv_type == "f32":
        return x
    if kv_type == "f16":
        return x.astype(np.float16).astype(np.float32)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks * (1 / scale))
    return (codes * scale.astype(np.float16).astype(np.float32)).reshape(x.shape)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_attention_of_large_and_equal_scores(kernels: Any, kv_type: str) -> None:
    """Scores far apart or all the same: no overflow, no division by zero."""
    k = np.zeros((300, 1, 32), np.float32)
    v = numbers(5, 300, 1, 32)
    q = np.full((2, 1, 32), 1e3, np.float32)
    found = np.empty_like(q)
    kernels.attention(KV_TYPES[kv_type], q, k, v, 1 << 40, found)
    np.testing.assert_allclose(
        found, exact_attention(q, k, stored(v, kv_type), 1 << 40), rtol=1e-3, atol=1e-3
    )

    k[200] = 1  # its score is 32,000 above all others'
    kernels.attention(KV_TYPES[kv_type], q, k, v, 1 << 40, found)
    np.testing.assert_allclose(
        found[:, 0], np.broadcast_to(stored(v, kv_type)[200, 0], (2, 32)), rtol=1e-5, atol=1e-5
    )
