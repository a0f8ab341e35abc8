"""The CPU backend's parts against the reference backend's, on every instruction set that this machine has."""

import gc
import mmap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parts import attend, attention_state
from numpy.typing import NDArray

from hotset.backends.contract import (
    F32,
    AttentionSpec,
    EmbeddingSpec,
    FFNSpec,
    HeadSpec,
    Linear,
    Norm,
    StateShape,
)
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.config import Activation, NormKind, RopeConfig
from hotset.core.errors import CheckpointError, HotsetError, RequestError
from hotset.formats.mapped import map_file
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array

HIDDEN = 40


@pytest.fixture(scope="module", params=CpuBackend.levels())
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    return CpuBackend(threads=2, level=request.param)


def numbers(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(seed: int, rows: int, cols: int, bias: bool = False) -> Linear:
    weight = tensor_from_array(f"weight_{seed}", numbers(seed, rows, cols) / np.float32(cols**0.5))
    return Linear(weight, numbers(seed + 1, rows) if bias else None)


def norm(seed: int, size: int, kind: NormKind = NormKind.RMS, bias: bool = False) -> Norm:
    return Norm(kind, 1e-5, 1 + numbers(seed, size) / 4, numbers(seed + 1, size) if bias else None)


def attention_spec(heads: tuple[int, int] = (4, 2), head_dim: int = 20, **options: Any) -> AttentionSpec:
    bias = options.pop("bias", False)
    q_size, kv_size = heads[0] * head_dim, heads[1] * head_dim
    return AttentionSpec(
        norm=options.pop("norm", norm(1, HIDDEN)),
        q=linear(10, (1 + options.get("gated", False)) * q_size, HIDDEN, bias),
        k=linear(20, kv_size, HIDDEN, bias),
        v=linear(30, kv_size, HIDDEN, bias),
        output=linear(40, HIDDEN, q_size, bias),
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head_dim=head_dim,
        scale=head_dim**-0.5,
        **options,
    )


def rope(dim: int, interleaved: bool) -> RopeConfig:
    return RopeConfig(dim, interleaved, tuple(10000.0 ** (-2 * i / dim) for i in range(dim // 2)), 1.1)


ATTENTIONS = {
    "plain": attention_spec(),
    "one head": attention_spec((1, 1), 6),
    "each its own": attention_spec((3, 3), 16, rope=rope(16, False)),
    "multi-query": attention_spec((7, 1), 20, rope=rope(20, True), bias=True),
    "window": attention_spec((4, 2), 32, rope=rope(32, True), window=9),
    "partial rotary": attention_spec((4, 2), 24, rope=rope(10, False)),
    "head norms": attention_spec(rope=rope(20, False), q_norm=norm(5, 20), k_norm=norm(6, 20)),
    "post norm": attention_spec(post_norm=norm(7, HIDDEN), norm=norm(8, HIDDEN, NormKind.LAYER, True)),
    "large group": attention_spec((64, 1), 4),
    "gated": attention_spec(rope=rope(10, False), q_norm=norm(5, 20), k_norm=norm(6, 20), gated=True),
    "sinks": attention_spec((7, 1), 20, sinks=3 * numbers(9, 7), window=40),
}

# Calls that come after one another: decode, prefill, and both after enough positions for keys to be split.
LENGTHS = (1, 1, 5, 17, 1, 130, 1, 70, 3, 1)


def run_attention(
    backend: Any, spec: AttentionSpec, kv_type: str = "f32", lengths: Any = LENGTHS
) -> list[F32]:
    shape = StateShape(2, spec.n_kv_heads, spec.head_dim)
    kv = backend.sequence(shape, sum(lengths), kv_type)
    layer, outputs = backend.attention(spec, 1), []
    for i, length in enumerate(lengths):
        x = numbers(100 + i, length, HIDDEN)
        out = numbers(200 + i, length, HIDDEN)
        attend(backend, layer, x, out, kv)
        outputs.append(out)
    return outputs


def assert_close(found: list[F32], expected: list[F32], tolerance: float = 2e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(backend: CpuBackend, name: str) -> None:
    expected = run_attention(ReferenceBackend(), ATTENTIONS[name])
    assert_close(run_attention(backend, ATTENTIONS[name]), expected)


def test_attention_with_half_precision_cache(backend: CpuBackend) -> None:
    spec = ATTENTIONS["window"]
    expected = run_attention(ReferenceBackend(), spec, "f16")
    assert_close(run_attention(backend, spec, "f16"), expected, 2e-4)  # a key may round to the next half


def test_attention_with_quantised_cache(backend: CpuBackend) -> None:
    spec = ATTENTIONS["window"]
    exact = run_attention(ReferenceBackend(), spec)
    found = run_attention(backend, spec, "q8_0")
    assert_close(found, exact, 0.02)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(Activation))
def test_ffn(backend: CpuBackend, activation: Activation, gated: bool) -> None:
    if activation.gated_only and not gated:
        pytest.skip("it has a gate")
    size = 67
    spec = FFNSpec(
        norm=norm(1, HIDDEN),
        gate=linear(10, size, HIDDEN, bias=True) if gated else None,
        up=linear(20, size, HIDDEN, bias=not gated),
        down=linear(30, HIDDEN, size, bias=gated),
        activation=activation,
        post_norm=norm(2, HIDDEN) if gated else None,
    )
    layer, reference = backend.ffn(spec), ReferenceBackend().ffn(spec)
    for length in (1, 2, 16, 33, 150):
        x = numbers(length, length, HIDDEN)
        found, expected = x.copy(), x.copy()
        layer.forward(found, found, None)  # in place, as the decoder does
        reference.forward(x, expected)
        assert_close([found], [expected])


def test_head(backend: CpuBackend) -> None:
    spec = HeadSpec(norm(1, HIDDEN, NormKind.LAYER, bias=True), linear(2, 301, HIDDEN, bias=True))
    for length in (1, 7):
        x = numbers(length, length, HIDDEN)
        assert_close([backend.head(spec).forward(x)], [ReferenceBackend().head(spec).forward(x)])


def random_tensor(type: TensorType, rows: int, cols: int) -> Tensor:
    """Any bytes; where they stand for floats, finite ones."""
    data = np.random.default_rng(type).integers(0, 256, (rows, cols // type.block_size, type.block_bytes))
    data = data.astype(np.uint8)
    halves = {type: [0] for type in TensorType} | {TensorType.Q6_K: [208], TensorType.F32: [2]}
    halves |= {type: [0, 2] for type in (TensorType.Q4_1, TensorType.Q5_1, TensorType.Q4_K, TensorType.Q5_K)}
    halves |= {TensorType.Q2_K: [80, 82], TensorType.Q3_K: [108], TensorType.MXFP4: [], TensorType.NVFP4: []}
    halves |= {TensorType.TQ1_0: [52], TensorType.TQ2_0: [64], TensorType.IQ1_M: [54]}
    for offset in halves[type]:
        data[..., offset + 1] &= 0xBF  # an exponent below the largest
    return Tensor("table", type, (rows, cols), np.ascontiguousarray(data).reshape(-1))


@pytest.mark.parametrize("type", list(TensorType))
def test_embedding(type: TensorType) -> None:
    """To the last bit what `gguf` dequantises."""
    table = random_tensor(type, 9, 512)
    tokens = np.array([8, 0, 3, 3], np.int32)
    found = CpuBackend(1).embedding(EmbeddingSpec(table, 1.5)).forward(tokens, np.arange(4, dtype=np.int32))
    np.testing.assert_array_equal(found, table.to_float32()[tokens] * np.float32(1.5))


def test_embedding_of_positions() -> None:
    spec = EmbeddingSpec(
        tensor_from_array("tokens", numbers(1, 5, 6)),
        1.0,
        tensor_from_array("positions", numbers(2, 10, 6)),
        2,
    )
    tokens = np.array([4, 0], np.int32)
    embedding = CpuBackend(1).embedding(spec)
    positions = np.array([7, 6], np.int32)
    np.testing.assert_array_equal(
        embedding.forward(tokens, positions), ReferenceBackend().embedding(spec).forward(tokens, positions)
    )
    with pytest.raises(RequestError, match=r"^position 8: the model has 8 positions"):
        embedding.forward(tokens, positions + np.int32(1))
    for wrong in (5, -1):
        with pytest.raises(RequestError, match=rf"^token {wrong}: expected 0 to 4"):
            embedding.forward(np.array([wrong], np.int32), positions[:1])


def test_threads_do_not_change_results() -> None:
    """To the last bit, decode and prefill, with keys split and unsplit."""
    spec = attention_spec((6, 2), 32, rope=rope(32, True))
    ffn = FFNSpec(norm(1, HIDDEN), linear(10, 999, HIDDEN), linear(20, 999, HIDDEN), linear(30, HIDDEN, 999),
                  Activation.SILU)  # fmt: skip
    results = []
    for threads in (1, 2, 3, 4):
        backend = CpuBackend(threads)
        outputs = run_attention(backend, spec, "f16", (1, 40, 1, 600, 1, 2))
        for i in range(20):
            x = numbers(i, 1 + i % 3, HIDDEN)
            backend.ffn(ffn).forward(x, x, None)
            outputs.append(x)
        results.append(outputs)
    for outputs in results[1:]:
        for a, b in zip(outputs, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_several_callers_at_once() -> None:
    """Requests in threads of their own share a backend; parts built and destroyed meanwhile do no harm."""
    backend, spec = CpuBackend(2), attention_spec((6, 2), 32, rope=rope(32, True))
    expected = run_attention(backend, spec, "f16")
    found: dict[int, list[F32]] = {}

    def work(caller: int) -> None:
        for _ in range(5):
            found[caller] = run_attention(backend, spec, "f16")

    callers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for outputs in found.values():
        for a, b in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_rewind() -> None:
    """What is written again after going back is what counts."""
    backend, spec = CpuBackend(2), attention_spec()
    kv = attention_state(backend, spec, 40, "f16")
    layer = backend.attention(spec)

    def append(seed: int, count: int) -> F32:
        x = numbers(seed, count, HIDDEN)
        out = np.zeros_like(x)
        attend(backend, layer, x, out, kv)
        return out

    append(1, 10)
    expected = append(2, 5)
    kv.rewind(10)
    append(3, 30)
    assert (kv.length, kv.capacity) == (40, 40)
    kv.rewind(10)
    np.testing.assert_array_equal(append(2, 5), expected)
    for length in (-1, 16):
        with pytest.raises(ValueError, match="length"):
            kv.rewind(length)
    with pytest.raises(ValueError, match="no room"):
        kv.advance(26)
    with pytest.raises(ValueError, match="no room"):
        append(4, 26)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory(tmp_path: Path) -> None:
    """File pages are given back once packed, and a cache is resident only as it fills."""
    rows, cols = 4096, 4096
    path = tmp_path / "weights"
    np.zeros(rows * cols, np.float32).tofile(path)
    data = map_file(path)
    weight = Tensor("w", TensorType.F32, (rows, cols), data)
    backend = CpuBackend(2)
    gc.collect()

    before = resident_bytes()
    head = backend.head(HeadSpec(norm(1, cols), Linear(weight)))
    assert resident_bytes() - before < 1.2 * data.nbytes
    assert not data[:: 1 << 20].any()  # still readable
    kv = backend.sequence(StateShape(32, 8, 128), 1 << 17, "f16")
    assert resident_bytes() - before < 1.2 * data.nbytes
    del kv, head
    gc.collect()
    assert resident_bytes() - before < 0.2 * data.nbytes


def test_wrong_arguments() -> None:
    with pytest.raises(HotsetError, match=r"^level: expected one of .*, found 'sse9'"):
        CpuBackend(level="sse9")
    for threads in (0, -1, 100_000):
        with pytest.raises(HotsetError, match=f"^threads: expected 1 to .*, found {threads}"):
            CpuBackend(threads)
    assert CpuBackend().threads >= 1

    backend = CpuBackend(1)
    shape = StateShape(1, 1, 20)
    with pytest.raises(HotsetError, match="^KV cache type: expected one of f32, f16, q8_0, found 'q4_0'"):
        backend.sequence(shape, 8, "q4_0")
    with pytest.raises(
        HotsetError, match="^KV cache type q8_0: expected heads of a multiple of 32 numbers, found 20"
    ):
        backend.sequence(shape, 8, "q8_0")
    with pytest.raises(HotsetError, match="^context: expected at least 1"):
        backend.sequence(shape, 0, "f16")
    with pytest.raises(HotsetError, match="^KV cache: no memory for 1000000000000000 positions"):
        backend.sequence(shape, 10**15, "f16")


def test_shapes_that_do_not_fit() -> None:
    backend, spec = CpuBackend(1), attention_spec()
    with pytest.raises(CheckpointError, match=r"^weight_1: expected shape \[40, 40\], found \[39, 40\]"):
        backend.attention(replace(spec, k=linear(1, 39, HIDDEN)))
    with pytest.raises(CheckpointError, match=r"^weight_1: bias: expected shape \[40\], found \[39\]"):
        backend.attention(replace(spec, k=Linear(linear(1, 40, HIDDEN).weight, numbers(1, 39))))
    with pytest.raises(CheckpointError, match="multiple of the number of key-value heads, found 4 and 3"):
        backend.attention(replace(spec, n_kv_heads=3))
    with pytest.raises(CheckpointError, match="expected RoPE on 2 to 20 numbers of a head, found 22"):
        backend.attention(replace(spec, rope=rope(22, False)))
    with pytest.raises(CheckpointError, match="drelu needs a gate"):
        backend.ffn(
            FFNSpec(norm(1, HIDDEN), None, linear(1, 8, HIDDEN), linear(2, HIDDEN, 8), Activation.DRELU)
        )


def test_arrays_that_do_not_fit() -> None:
    backend = CpuBackend(1)
    head = backend.head(HeadSpec(norm(1, HIDDEN), linear(2, 9, HIDDEN)))
    x: NDArray[Any]
    for x in (numbers(1, 2, 41), numbers(1, HIDDEN), numbers(1, 2, HIDDEN).astype(np.float64)):
        with pytest.raises(ValueError, match=r"x: expected a C-contiguous float32 array \(T, 40\)"):
            head.forward(x)
    assert head.forward(numbers(1, 0, HIDDEN)).shape == (0, 9)


def test_memory_bandwidth() -> None:
    assert 0.5 < CpuBackend().memory_bandwidth() < 5000
