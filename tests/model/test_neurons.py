"""Models stored by neuron against the same models stored as usual, and exact against dense."""

from collections.abc import Iterator
from dataclasses import replace

import gguf
import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.batch import Sequence as State
from hotset.core.config import Activation, FFNPlan, Score, Way
from hotset.formats.tensor import Tensor, TensorType
from hotset.model.build import build_transformer
from hotset.model.transformer import SINK_TOKENS, SLICE, Transformer


@pytest.mark.parametrize("way", [Way.DENSE, Way.EXACT])
@pytest.mark.parametrize(
    ("activation", "gated"),
    [
        (Activation.RELU, True),
        (Activation.RELU, False),
        (Activation.DRELU, True),
        (Activation.RELU2, False),
        (Activation.RELU2, True),
    ],
)
def test_any_order_of_neurons_gives_the_same_logits(activation: Activation, gated: bool, way: Way) -> None:
    usual = random_checkpoint(activation=activation, gated=gated)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(usual.config.ffn_size) for _ in usual.config.layers]
    tokens = rng.integers(0, usual.config.vocab_size, 24, dtype=np.int32)
    logits = []
    for checkpoint in (usual, by_neuron(usual, FFNPlan(way), orders)):
        model = build_transformer(checkpoint, ReferenceBackend())
        kv = model.sequence(24, "f32")
        parts = [model.forward(Batch.of(kv, tokens[:12], logits=None))]  # a prompt, then tokens one by one
        parts += [model.forward(Batch.of(kv, tokens[i : i + 1])) for i in range(12, 24)]
        logits.append(np.concatenate(parts))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("type", [TensorType.F16, TensorType.Q8_0, TensorType.Q4_0])
@pytest.mark.parametrize(
    ("activation", "gated"),
    [(Activation.RELU, True), (Activation.DRELU, True), (Activation.RELU, False), (Activation.RELU2, False)],
)
def test_exact_writes_the_same_text_as_dense(activation: Activation, gated: bool, type: TensorType) -> None:
    """256 greedy tokens, and the same logits to the bit, with any number of threads and in any order."""
    usual = random_checkpoint(
        hidden_size=64, ffn_size=1100, context_length=300, activation=activation, gated=gated
    )
    rng = np.random.default_rng(1)
    order = [rng.permutation(1100) for _ in usual.config.layers]

    def text(plan: FFNPlan, threads: int) -> tuple[list[int], np.ndarray]:
        checkpoint = by_neuron(usual, plan, order)
        tensors: dict[str, Tensor] = checkpoint.tensors  # type: ignore[assignment]
        for name, tensor in tensors.items():
            if "ffn_" in name and "norm" not in name:
                kind = gguf.GGMLQuantizationType(int(type))
                blocks = np.ascontiguousarray(gguf.quantize(tensor.to_float32(), kind))
                tensors[name] = Tensor(name, type, tensor.shape, blocks.reshape(-1).view(np.uint8))
        model = build_transformer(checkpoint, CpuBackend(threads=threads))
        kv = model.sequence(300)
        logits = model.forward(Batch.of(kv, np.arange(12, dtype=np.int32)))
        tokens: list[int] = []
        while len(tokens) < 256:
            tokens.append(int(logits.argmax()))
            logits = model.forward(Batch.of(kv, np.array(tokens[-1:], np.int32)))
        return tokens, logits

    dense, exact = text(FFNPlan(Way.DENSE), 1), text(FFNPlan(Way.EXACT), 2)
    assert dense[0] == exact[0]
    assert np.array_equal(dense[1], exact[1])


Calls = list[tuple[int, bool]]
"""Of `Transformer.forward`: how many tokens, and whether they are a prompt."""


def read(model: Transformer, calls: Calls, kv: State | None = None) -> Iterator[NDArray[np.float32]]:
    """The logits after each token of each call."""
    kv = kv or model.sequence(sum(count for count, _ in calls), "f32")
    for count, prompt in calls:
        tokens = np.arange(kv.length, kv.length + count, dtype=np.int32) * 7 % 53
        yield model.forward(Batch.of(kv, tokens, lossless=prompt, logits=None))


def chosen_rows(calls: Calls) -> list[int]:
    """Of each call the rows, its last ones, whose neurons a plan may choose."""
    starts = np.cumsum([0, *(count for count, _ in calls)])
    return [
        0 if prompt else int(min(count, max(0, start + count - SINK_TOKENS)))
        for start, (count, prompt) in zip(starts, calls, strict=False)
    ]


PLANS = [
    (Activation.SILU, FFNPlan(Way.THRESHOLD, Score.DOWN)),
    (Activation.SILU, FFNPlan(Way.THRESHOLD, Score.GATE)),
    (Activation.RELU, FFNPlan(Way.THRESHOLD, Score.GATE)),
    (Activation.RELU, FFNPlan(Way.PREDICTOR, Score.GATE_Q4)),
]
ONE_BY_ONE: Calls = [(1, False)] * 11
CALL = st.one_of(st.tuples(st.integers(1, 12), st.just(True)), st.tuples(st.integers(1, 8), st.just(False)))


@pytest.mark.parametrize(("activation", "plan"), PLANS)
@settings(max_examples=20, deadline=None)
@given(calls=st.lists(CALL, min_size=1, max_size=6))
@example(ONE_BY_ONE)
@example([(1, True), *ONE_BY_ONE])
@example([(3, True), *ONE_BY_ONE])
@example([(8, True), (1, False)])
@example([(9, True), (1, False)])
@example([(30, True), (3, True), (1, True), (8, True), (3, False)])
@example([(8, False), (8, False)])
@example([(SLICE + 3, True), (1, False)])
def test_prompts_and_first_tokens_are_dense(activation: Activation, plan: FFNPlan, calls: Calls) -> None:
    """Wherever a plan that would leave out everything may not choose, the logits are dense's."""
    usual = random_checkpoint(hidden_size=32, ffn_size=100, activation=activation, context_length=1024)

    def model(plan: FFNPlan) -> Transformer:
        checkpoint = by_neuron(usual, plan, [np.arange(100)] * 2)
        return build_transformer(quantised(checkpoint, TensorType.F16), CpuBackend(threads=1))

    dense = read(model(FFNPlan(Way.DENSE)), calls)
    everything = read(model(replace(plan, cutoff=-1e9)), calls)
    nothing = model(replace(plan, cutoff=1e9))
    sequence = nothing.sequence(sum(count for count, _ in calls), "f32")
    readings = zip(chosen_rows(calls), read(nothing, calls, sequence), everything, dense, strict=True)
    for chosen, found, all_chosen, expected in readings:
        whole = len(found) - chosen
        if chosen:
            difference = np.abs(found[whole:] - expected[whole:]).max(axis=1)
            assert (difference > 0.05 * np.abs(expected[whole:]).max(axis=1)).all()
        for other in (all_chosen, expected):
            np.testing.assert_allclose(found[:whole], other[:whole], rtol=1e-3, atol=1e-4)
        if chosen:
            break  # what the sequence holds is no longer dense's
    list(readings)
    rows = sum(chosen_rows(calls))
    assert [(c.work.rows, c.work.read) for c in sequence.choosers if c] == [(rows, 0)] * 2


@pytest.mark.parametrize(("activation", "plan"), PLANS)
def test_the_reference_is_dense_there_too(activation: Activation, plan: FFNPlan) -> None:
    usual = random_checkpoint(hidden_size=32, ffn_size=100, activation=activation)

    def model(plan: FFNPlan) -> Transformer:
        return build_transformer(by_neuron(usual, plan, [np.arange(100)] * 2), ReferenceBackend())

    calls = [(1, False), (5, False), (1, False), (1, False), (3, True), (1, True), (1, False)]
    found = list(read(model(replace(plan, cutoff=1e9)), calls))
    expected = list(read(model(FFNPlan(Way.DENSE)), calls))
    assert [np.array_equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 6 + [False]
