"""Attention, FFNs, head and embedding of the GPU backend against the reference backend's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.gpu_arrays import assert_close, to_gpu, to_numpy
from helpers.parts import LoneFFN, attend, attention_state

from hotset.backends.contract import (
    F32,
    AttentionSpec,
    EmbeddingSpec,
    FFNSpec,
    HeadSpec,
    LayerInputSpec,
    LayerInputsSpec,
    Linear,
    NeuronFFNSpec,
    Norm,
    StateShape,
)
from hotset.backends.cpu import CpuBackend
from hotset.backends.gpu.attention import attention_splits
from hotset.backends.maths import normalise, predict, predictor_matrices
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, FFNPlan, NormKind, RopeConfig, Score, Way
from hotset.core.errors import CheckpointError, HotsetError, RequestError
from hotset.core.heads import KvShape, QueryGrowth
from hotset.formats.tensor import tensor_from_array

HIDDEN = 40


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
        q=linear(10, q_size * (1 + options.get("gated", False)), HIDDEN, bias),
        k=linear(20, kv_size, HIDDEN),
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
    "layer norms of heads": attention_spec(
        rope=rope(20, True), q_norm=norm(5, 20, NormKind.LAYER, True), k_norm=norm(6, 20, NormKind.LAYER)
    ),
    "post norm": attention_spec(post_norm=norm(7, HIDDEN), norm=norm(8, HIDDEN, NormKind.LAYER, True)),
    "large group": attention_spec((40, 1), 4),
    "gated": attention_spec(
        (4, 2), 20, gated=True, rope=rope(10, False), q_norm=norm(5, 20), k_norm=norm(6, 20)
    ),
    "a gate for each head": attention_spec((6, 2), 12, head_gate=linear(50, 6, HIDDEN), rope=rope(12, True)),
    "sinks": attention_spec((4, 2), 20, sinks=numbers(9, 4), window=3, bias=True),
    "norms of all heads": attention_spec(
        rope=rope(20, False), q_norm=norm(5, 80), k_norm=norm(6, 40), norm=norm(1, HIDDEN, NormKind.NONE)
    ),
    "growing queries": attention_spec(rope=rope(20, False), growth=QueryGrowth(0.3, 2)),
    "long frequencies": attention_spec(
        rope=replace(rope(20, False), long_frequencies=tuple(np.linspace(0.1, 0.9, 10)), long_from=5)
    ),
    "soft cap": attention_spec((4, 2), 20, soft_cap=0.7, window=5),
    "a norm of values": attention_spec(
        rope=rope(20, False), q_norm=norm(5, 20), k_norm=norm(6, 20), v_norm=norm(7, 20)
    ),
    "values are the keys": replace(
        attention_spec((6, 2), 20, rope=rope(10, True), k_norm=norm(6, 20), v_norm=norm(7, 20)), v=None
    ),
    "gated, values are the keys": replace(
        attention_spec((3, 1), 20, gated=True, rope=rope(20, False)), v=None
    ),
}

LENGTHS = (1, 4, 1)
"""Calls that come after one another: decode, prefill, decode."""


def run_reference(spec: AttentionSpec, lengths: tuple[int, ...], kv_type: str = "f32") -> list[F32]:
    backend = ReferenceBackend()
    shape = StateShape(2, spec.n_kv_heads, spec.head_dim)
    kv = backend.sequence(shape, sum(lengths), kv_type)
    layer, outputs = backend.attention(spec, 1), []
    for i, length in enumerate(lengths):
        out = numbers(200 + i, length, HIDDEN)
        attend(backend, layer, numbers(100 + i, length, HIDDEN), out, kv)
        outputs.append(out)
    return outputs


def run_gpu(
    backend: Any, spec: AttentionSpec, lengths: tuple[int, ...], kv_type: str = "f32", capacity: int = 0
) -> list[F32]:
    shape = StateShape(2, spec.n_kv_heads, spec.head_dim)
    kv = backend.sequence(shape, capacity or sum(lengths), kv_type)
    layer, outputs = backend.attention(spec, 1), []
    for i, length in enumerate(lengths):
        out = to_gpu(backend, numbers(200 + i, length, HIDDEN))
        attend(backend, layer, to_gpu(backend, numbers(100 + i, length, HIDDEN)), out, kv)
        outputs.append(to_numpy(out))
    return outputs


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(backend: Any, name: str) -> None:
    spec = ATTENTIONS[name]
    # The interpreter is slow: over more keys than a block holds in two cases.
    lengths = (1, 34, 1) if name in ("each its own", "window") else LENGTHS
    found = run_gpu(backend, spec, lengths)
    for a, b in zip(found, run_reference(spec, lengths), strict=True):
        assert_close(a, b, 2e-5)


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_layers_with_different_heads(backend: Any, kv_type: str) -> None:
    """Each has a place of its own in the cache, and the last reads what the second has written."""
    specs = [
        attention_spec((4, 2), 20, rope=rope(20, False)),
        attention_spec((3, 1), 7, v_norm=norm(7, 7)),
        attention_spec((4, 4), 10, rope=rope(4, True)),
        replace(attention_spec((5, 1), 7, rope=rope(6, False), q_norm=norm(5, 7)), k=None, v=None),
    ]
    shape = StateShape(3, 1, 1, own=tuple(KvShape(s.n_kv_heads, s.head_dim) for s in specs[:3]))
    results = []
    for at in (backend, ReferenceBackend()):
        layers = [at.attention(spec, index) for spec, index in zip(specs, (0, 1, 2, 1), strict=True)]
        sequence = at.sequence(shape, 11, kv_type)
        for step, count in enumerate((4, 1, 2)):
            x = numbers(step, count, HIDDEN)
            x = to_gpu(backend, x) if at is backend else x
            view = at.view(Batch.of(sequence, np.zeros(count, np.int32)))
            for layer in layers:
                layer.forward(x, x, view)
            sequence.advance(count)
            sequence = sequence.fork()
            results.append(to_numpy(x) if at is backend else x)
    for found, expected in zip(results[:3], results[3:], strict=True):
        assert_close(found, expected, 2e-5 if kv_type == "f32" else 5e-4)


def test_a_norm_of_all_keys_is_none_of_values(backend: Any) -> None:
    with pytest.raises(HotsetError, match="no norm of all keys of values yet"):
        backend.attention(replace(attention_spec(k_norm=norm(6, 40)), v=None))


def test_inputs_for_each_layer(backend: Any) -> None:
    spec = LayerInputsSpec(
        tensor_from_array("rows", numbers(1, 7, 3 * 9)), linear(2, 3 * 9, HIDDEN), norm(3, 9), 3
    )
    tokens, x = np.array([3, 0, 6], np.int32), numbers(4, 3, HIDDEN)
    expected = ReferenceBackend().layer_inputs(spec).forward(tokens, x)
    for rows in (1, 3):
        found = backend.layer_inputs(spec).forward(tokens[:rows], to_gpu(backend, x[:rows]))
        assert_close(found, expected[:rows], 2e-5)


def test_attention_over_split_keys(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most splits have no key, or none that the window lets through."""
    monkeypatch.setattr(backend.gpu, "multiprocessors", 8)
    for spec in (
        attention_spec((4, 2), 16, sinks=numbers(9, 4), gated=True),
        attention_spec((2, 1), 16, window=3),
    ):
        lengths = (3, 1)
        found = run_gpu(backend, spec, lengths, capacity=400)
        for a, b in zip(found, run_reference(spec, lengths), strict=True):
            assert_close(a, b, 2e-5)


@pytest.mark.parametrize("programs", [1, 8, 32, 500])
def test_splits(programs: int) -> None:
    splits = attention_splits(programs, 100, 80)
    assert 1 <= splits <= 64
    assert splits == 1 or splits * programs <= 160


def test_attention_with_half_precision_cache(backend: Any) -> None:
    spec = ATTENTIONS["window"]
    found = run_gpu(backend, spec, (1, 12, 1), "f16")
    for a, b in zip(found, run_reference(spec, (1, 12, 1), "f16"), strict=True):
        assert_close(a, b, 2e-4)  # a key may round to the next half


@pytest.mark.parametrize(("heads", "size", "rotary"), [((4, 2), 32, 32), ((2, 1), 96, 64)])
def test_attention_with_an_8_bit_cache(backend: Any, heads: tuple[int, int], size: int, rotary: int) -> None:
    """As the CPU's; a code may round to its neighbour."""
    spec = attention_spec(heads, size, rope=rope(rotary, False), window=9)
    cpu, shape, lengths = CpuBackend(threads=1), StateShape(2, heads[1], size), (1, 21, 1)
    kv, layer, expected = cpu.sequence(shape, 23, "q8_0"), cpu.attention(spec, 1), []
    for i, length in enumerate(lengths):
        expected.append(numbers(200 + i, length, HIDDEN))
        attend(cpu, layer, numbers(100 + i, length, HIDDEN), expected[-1], kv)
    found = run_gpu(backend, spec, lengths, "q8_0")
    for a, b, exact in zip(found, expected, run_reference(spec, lengths), strict=True):
        assert_close(a, b, 4e-3)
        assert_close(a, exact, 2e-2)


def test_going_back(backend: Any) -> None:
    spec = attention_spec()
    kv = attention_state(backend, spec, 12, "f16")
    layer = backend.attention(spec)

    def append(seed: int, count: int) -> F32:
        out = to_gpu(backend, np.zeros((count, HIDDEN), np.float32))
        attend(backend, layer, to_gpu(backend, numbers(seed, count, HIDDEN)), out, kv)
        return to_numpy(out)

    append(1, 5)
    expected = append(2, 3)
    assert kv.reusable(20) == 8
    kv.rewind(5)
    append(3, 7)
    assert (kv.length, kv.capacity) == (12, 12)
    kv.rewind(5)
    np.testing.assert_array_equal(append(2, 3), expected)
    for length in (-1, 9):
        with pytest.raises(ValueError, match="length"):
            kv.rewind(length)
    with pytest.raises(ValueError, match="no room"):
        kv.advance(5)
    with pytest.raises(ValueError, match="no room for 5 positions after 8 of 12"):
        append(4, 5)


@pytest.mark.parametrize("block_rows", [128, 3])
def test_attention_of_several_sequences(
    backend: Any, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and single rows in one call, also cut; sequences of different room, one of them forked."""
    monkeypatch.setattr("hotset.backends.gpu.state.BLOCK_ROWS", block_rows)
    spec = attention_spec((4, 2), 16, rope=rope(16, False), window=5)
    shape = StateShape(2, 2, 16)
    layer, reference = backend.attention(spec, 1), ReferenceBackend().attention(spec, 1)
    rooms = (9, 40, 17)
    found = [backend.sequence(shape, room, "f32") for room in rooms]
    expected = [ReferenceBackend().sequence(shape, room, "f32") for room in rooms]
    for counts in ((4, 1, 2), (1, 6, 1), (1, 1, 3)):
        x, out = numbers(sum(counts), sum(counts), HIDDEN), numbers(1, sum(counts), HIDDEN)
        there = to_gpu(backend, out)
        for at, sequences, y in ((backend, found, there), (ReferenceBackend(), expected, out)):
            batch = Batch(np.zeros(len(x), np.int32), tuple(map(Span, sequences, counts)))
            part = layer if at is backend else reference
            part.forward(to_gpu(backend, x) if at is backend else x, y, at.view(batch))
            for sequence, count in zip(sequences, counts, strict=True):
                sequence.advance(count)
        assert_close(there, out, 2e-5)
        for sequences in (found, expected):
            sequences[2] = sequences[2].fork()
    mixed = Batch(np.zeros(2, np.int32), (Span(found[0], 1), Span(backend.sequence(shape, 3, "f16"), 1)))
    with pytest.raises(HotsetError, match="one type of keys and values"):
        backend.view(mixed)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(Activation))
def test_ffn(backend: Any, activation: Activation, gated: bool) -> None:
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
    by_neuron = NeuronFFNSpec(
        norm=spec.norm,
        gate=spec.gate,
        up=spec.up,
        down_t=Linear(tensor_from_array("t", spec.down.weight.to_float32().T), spec.down.bias),
        activation=activation,
        plan=FFNPlan(Way.DENSE),
        post_norm=spec.post_norm,
    )
    reference = ReferenceBackend().ffn(spec)
    layers = (backend.ffn(spec), backend.neuron_ffn(by_neuron))
    for length in (1, 3):
        x = numbers(length, length, HIDDEN)
        expected = x.copy()
        reference.forward(x, expected, None)
        for layer in layers:
            found = to_gpu(backend, x)
            layer.forward(found, found, None)  # in place, as the decoder does
            assert_close(found, expected, 2e-5)
    gate, h = np.empty((3, size), np.float32), np.empty((3, size), np.float32)
    layers[0].neurons(to_gpu(backend, x), gate, h)
    expected_gate, expected_h = np.empty_like(gate), np.empty_like(h)
    reference.neurons(x, expected_gate, expected_h)
    assert_close(gate, expected_gate, 2e-5)
    assert_close(h, expected_h, 2e-5)


def test_an_ffn_in_blocks_of_rows(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FFNSpec(
        norm(1, HIDDEN),
        linear(10, 67, HIDDEN),
        linear(20, 67, HIDDEN),
        linear(30, HIDDEN, 67),
        Activation.SILU,
    )
    x = numbers(5, 5, HIDDEN)
    layer, whole, cut = backend.ffn(spec), to_gpu(backend, x), to_gpu(backend, x)
    layer.forward(whole, whole)
    monkeypatch.setattr("hotset.backends.gpu.state.BLOCK_ROWS", 2)
    layer.forward(cut, cut)
    assert_close(cut, to_numpy(whole), 2e-5)


@pytest.mark.parametrize(("rows", "expected"), [(1, [1]), (128, [128]), (129, [64, 65]), (512, [128] * 4)])
def test_blocks_are_about_equal(rows: int, expected: list[int]) -> None:
    from hotset.backends.gpu.state import blocks_of

    blocks = blocks_of(rows)
    assert [block.stop - block.start for block in blocks] == expected
    assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(rows))


def test_a_slot(backend: Any) -> None:
    """FFNs of different sizes and kinds in turn, in memory that stays where it is."""
    slot, x = backend.slot(), numbers(1, 2, HIDDEN)
    addresses = set()
    for size in (67, 30, 50):
        spec = FFNSpec(
            norm(size, HIDDEN), linear(10, size, HIDDEN, bias=True), linear(20, size, HIDDEN),
            linear(30, HIDDEN, size), Activation.SILU,
        )  # fmt: skip
        down_t = Linear(tensor_from_array("t", spec.down.weight.to_float32().T))
        by_neuron = NeuronFFNSpec(spec.norm, spec.gate, spec.up, down_t, Activation.SILU, FFNPlan(Way.DENSE))
        expected = x.copy()
        ReferenceBackend().ffn(spec).forward(x, expected, None)
        for which in (spec, by_neuron):
            layer = slot.fill(which)
            found = to_gpu(backend, x)
            layer.forward(found, found)
            assert_close(found, expected, 2e-5)
            addresses.add(layer.norm.weight.data_ptr())
    assert len(addresses) == 1


@pytest.mark.parametrize("way", list(Way))
def test_every_way_computes_all_neurons(backend: Any, way: Way) -> None:
    score = {Way.THRESHOLD: Score.DOWN, Way.PREDICTOR: Score.GATE_Q2}.get(way)
    spec = NeuronFFNSpec(
        norm(1, 64), linear(10, 33, 64), linear(20, 33, 64), linear(30, 33, 64), Activation.RELU,
        FFNPlan(way, score, cutoff=1e9),
    )  # fmt: skip
    x = numbers(1, 1, 64)
    found, expected = to_gpu(backend, x), x.copy()
    layer = backend.neuron_ffn(spec)
    layer.forward(found, found, None)
    LoneFFN(ReferenceBackend(), replace(spec, plan=FFNPlan(Way.DENSE))).forward(x, expected)
    assert_close(found, expected, 2e-5)


@pytest.mark.parametrize("score", [Score.LOW_RANK, Score.LOW_RANK_RELU, Score.GATE_Q2, Score.GATE_Q4])
def test_predictor(backend: Any, score: Score) -> None:
    low_rank = score in (Score.LOW_RANK, Score.LOW_RANK_RELU)
    spec = NeuronFFNSpec(
        norm(1, 64), linear(10, 300, 64, True), linear(20, 300, 64), linear(30, 300, 64), Activation.RELU,
        FFNPlan(Way.PREDICTOR, score, raw_input=score is Score.LOW_RANK_RELU),
        (linear(40, 7, 64), linear(50, 300, 7, bias=True)) if low_rank else (),
    )  # fmt: skip
    predictor = backend.predictor(spec)
    for tokens in (1, 2):
        x = numbers(5, tokens, 64)
        read = x if spec.plan.raw_input else normalise(x, spec.norm)
        expected = predict(predictor_matrices(spec), read, score is Score.LOW_RANK_RELU)
        scores = predictor.scores(to_gpu(backend, x))
        # Quantised copies of the gate take one token as 8-bit codes, two as float16.
        assert_close(scores, expected, 2e-5 if low_rank else 1e-2)


def test_predictor_that_a_plan_has_not(backend: Any) -> None:
    spec = NeuronFFNSpec(
        norm(1, 40), None, linear(10, 9, 40), linear(20, 9, 40), Activation.RELU, FFNPlan(Way.EXACT)
    )
    with pytest.raises(CheckpointError, match="its plan has no predictor"):
        backend.predictor(spec)
    with pytest.raises(CheckpointError, match="gate_q2: expected rows of a multiple of 32 numbers, found 40"):
        backend.predictor(replace(spec, plan=FFNPlan(Way.PREDICTOR, Score.GATE_Q2)))


def test_head_and_embedding(backend: Any) -> None:
    spec = HeadSpec(norm(1, HIDDEN, NormKind.LAYER, bias=True), linear(2, 301, HIDDEN, bias=True), 3.0)
    table = EmbeddingSpec(tensor_from_array("tokens", numbers(3, 9, HIDDEN)), 1.5)
    embedding, reference = backend.embedding(table), ReferenceBackend().embedding(table)
    for tokens in ([8], [0, 3, 3]):
        ids = np.array(tokens, np.int32)
        at = np.arange(len(ids), dtype=np.int32)
        x = embedding.forward(ids, at)
        np.testing.assert_array_equal(to_numpy(x), reference.forward(ids, at))
        logits = backend.head(spec).forward(x)
        assert isinstance(logits, np.ndarray)
        assert_close(logits, ReferenceBackend().head(spec).forward(reference.forward(ids, at)), 2e-5)
    with pytest.raises(RequestError, match=r"^token 9: expected 0 to 8"):
        embedding.forward(np.array([9], np.int32), np.zeros(1, np.int32))


def test_norm_that_adds(backend: Any) -> None:
    spec, x, out = norm(1, HIDDEN), numbers(2, 3, HIDDEN), numbers(3, 3, HIDDEN)
    found = to_gpu(backend, out)
    backend.norm(spec).forward(to_gpu(backend, x), found, add=True)
    assert_close(found, out + normalise(x, spec), 2e-6)
    copy = backend.copy(found)
    copy.zero_()
    assert found.any()


def test_wrong_arguments(backend: Any) -> None:
    shape = StateShape(1, 1, 32)
    with pytest.raises(
        HotsetError, match=r"^KV cache type: a GPU's is one of f16, f32, q8_0, found 'q4_0'; use f16"
    ):
        backend.sequence(shape, 8, "q4_0")
    with pytest.raises(
        HotsetError, match="^KV cache type q8_0: expected heads of a multiple of 32, found 20"
    ):
        backend.sequence(StateShape(1, 1, 20), 8, "q8_0")
    with pytest.raises(HotsetError, match="^context: expected at least 1 token, found 0"):
        backend.sequence(shape, 0, "f16")
    with pytest.raises(HotsetError, match=r"^KV cache: no memory for 1000000000000 positions"):
        backend.sequence(shape, 10**12, "f16")
    with pytest.raises(CheckpointError, match="multiple of the number of key-value heads, found 4 and 3"):
        backend.attention(replace(attention_spec(), n_kv_heads=3))
    with pytest.raises(CheckpointError, match="expected RoPE on 2 to 20 numbers of a head, found 22"):
        backend.attention(replace(attention_spec(), rope=rope(22, False)))
    with pytest.raises(CheckpointError, match="drelu needs a gate"):
        backend.ffn(FFNSpec(norm(1, 40), None, linear(1, 8, 40), linear(2, 40, 8), Activation.DRELU))


def test_own_embeddings_of_layers(backend: Any) -> None:
    spec = LayerInputSpec(linear(1, 12, HIDDEN), linear(2, HIDDEN, 12), norm(3, HIDDEN))
    layer, reference = backend.layer_input(spec), ReferenceBackend().layer_input(spec)
    for rows in (1, 5):
        x, e = numbers(rows, rows, HIDDEN), numbers(7, rows, 12)
        expected, out = x.copy(), to_gpu(backend, x)
        reference.forward(x, e, expected)
        layer.forward(out, to_gpu(backend, e), out)
        assert_close(out, expected, 1e-3)
