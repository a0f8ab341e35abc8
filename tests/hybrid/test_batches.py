"""Batches of several sequences, prompts and single tokens mixed, against the model in one place."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.core.errors import RequestError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import TensorType
from hotset.hybrid.build import build_hybrid
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer
from hotset.testing.stand_in import StandInDevice

SIZE, CAPACITY = 96, 40
PLANS = {
    "plain": None,
    "exact": FFNPlan(Way.EXACT),
    "threshold": FFNPlan(Way.THRESHOLD, Score.GATE, cutoff=0.05),
    "predictor": FFNPlan(Way.PREDICTOR, Score.GATE_Q4, cutoff=0.05),
}


def checkpoint(plan: str, parallel: bool, type: TensorType = TensorType.F16) -> Checkpoint:
    chosen = PLANS[plan]
    usual = random_checkpoint(
        hidden_size=32, ffn_size=SIZE, activation=Activation.RELU, parallel=parallel, windows=(None, 7, None)
    )
    if chosen is None:
        return quantised(usual, type)
    order = [np.random.default_rng(i).permutation(SIZE) for i in range(3)]
    return quantised(by_neuron(usual, chosen, order), type)


@dataclass
class Conversation:
    """The same tokens in two models."""

    seed: int
    sequences: list[Any] = field(default_factory=list)

    def tokens(self, count: int, model: int) -> NDArray[np.int32]:
        start = self.sequences[model].length
        everything = np.random.default_rng(self.seed).integers(0, 53, CAPACITY, dtype=np.int32)
        return everything[start : start + count]


def batch(talks: list[Conversation], counts: list[int], lossless: list[bool], model: int) -> Batch:
    spans = tuple(
        Span(talk.sequences[model], count, flag, logits=count)
        for talk, count, flag in zip(talks, counts, lossless, strict=True)
        if count
    )
    return Batch(np.concatenate([t.tokens(n, model) for t, n in zip(talks, counts, strict=True)]), spans)


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def models(plan: str, placement: Placement, parallel: bool) -> list[Transformer]:
    """The hybrid model, and the one that it must equal: a model whose plan leaves out nothing but zeros."""
    hybrid = build_hybrid(checkpoint(plan, parallel), placement, StandInDevice(), CpuBackend(threads=1))
    whole = "plain" if plan == "plain" else "exact"
    return [hybrid, build_transformer(checkpoint(whole, parallel), CpuBackend(threads=1))]


EVERYWHERE = Placement(
    (LayerPlacement(True, 32), LayerPlacement(False, 64), LayerPlacement(True, SIZE)), True
)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("plan", ["plain", "exact"])
@pytest.mark.parametrize("rows", range(1, 9))
def test_rows_of_several_sequences(rows: int, plan: str, parallel: bool) -> None:
    """Single rows of so many sequences of different lengths, step by step."""
    pair = models(plan, EVERYWHERE, parallel)
    talks = [Conversation(i, [model.sequence(CAPACITY, "f32") for model in pair]) for i in range(rows)]
    for counts in ([2 * i + 1 for i in range(rows)], [1] * rows, [1] * rows):
        found, expected = (
            model.forward(batch(talks, counts, [False] * rows, i)) for i, model in enumerate(pair)
        )
        assert_close(found, expected)


@settings(max_examples=30, deadline=None)
@given(
    plan=st.sampled_from(["plain", "exact"]),
    hot=st.tuples(*[st.sampled_from([0, 32, 64, SIZE])] * 3),
    attention=st.tuples(*[st.booleans()] * 3),
    head=st.booleans(),
    parallel=st.booleans(),
    calls=st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=3, max_size=3), min_size=1, max_size=5
    ),
    seed=st.integers(0, 99),
)
def test_any_mix(
    plan: str,
    hot: tuple[int, int, int],
    attention: tuple[bool, bool, bool],
    head: bool,
    parallel: bool,
    calls: list[list[tuple[int, bool]]],
    seed: int,
) -> None:
    """Any spans of three sequences, with going back and forking in between."""
    pair = models(plan, Placement(tuple(map(LayerPlacement, attention, hot)), head), parallel)
    talks = [Conversation(i, [model.sequence(CAPACITY, "f32") for model in pair]) for i in range(3)]
    rng = np.random.default_rng(seed)
    for call in calls:
        counts, lossless = [count for count, _ in call], [flag for _, flag in call]
        if not any(counts):
            continue
        found, expected = (model.forward(batch(talks, counts, lossless, i)) for i, model in enumerate(pair))
        assert_close(found, expected)
        talk = talks[rng.integers(3)]
        if rng.random() < 0.5:
            length = int(rng.integers(talk.sequences[0].length + 1))
            assert talk.sequences[0].reusable(length) == length
            for sequence in talk.sequences:
                sequence.rewind(length)
        else:
            talks[rng.integers(3)] = Conversation(talk.seed, [s.fork() for s in talk.sequences])


@pytest.mark.parametrize("plan", ["threshold", "predictor"])
def test_lossless_spans_beside_others(plan: str) -> None:
    """A prompt's rows, and a sequence's first, leave out nothing, whoever is beside them."""
    pair = models(plan, EVERYWHERE, False)
    talks = [Conversation(i, [model.sequence(CAPACITY, "f32") for model in pair]) for i in range(3)]
    for i, model in enumerate(pair):
        model.forward(batch(talks[:1], [12], [True], i))
    hybrid = pair[0]
    for counts in ([1, 3, 2], [1, 9, 4]):
        found, expected = (
            model.forward(batch(talks, counts, [False, True, True], i)) for i, model in enumerate(pair)
        )
        assert_close(found[1:], expected[1:])
        assert np.abs(found[0] - expected[0]).max() > 1e-3 * np.abs(expected).max()
    work = [chooser.work.rows for chooser in talks[0].sequences[0].choosers[:2]]
    assert work == [2, 2]
    assert [c.work.rows for talk in talks[1:] for c in talk.sequences[0].choosers] == [0] * 6
    hybrid.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("plan", ["exact", "predictor"])
@pytest.mark.parametrize("type", [TensorType.Q8_0, TensorType.Q4_0])
def test_a_row_does_not_see_its_neighbours(type: TensorType, plan: str) -> None:
    """To the bit, alone or beside up to seven others, by one planned step; it chooses neurons or zeros."""
    device = StandInDevice()
    model = build_hybrid(checkpoint(plan, False, type), EVERYWHERE, device, CpuBackend(threads=1))
    beside = [Conversation(1 + i, [model.sequence(CAPACITY)]) for i in range(7)]
    for i, talk in enumerate(beside):
        model.forward(batch([talk], [2 * i + 1], [True], 0))

    def read(others: int) -> NDArray[np.float32]:
        talks = [Conversation(0, [model.sequence(CAPACITY)]), *beside[:others]]
        found = [model.forward(batch(talks[:1], [10], [True], 0))]
        for _ in range(3):
            found.append(model.forward(batch(talks, [1] * len(talks), [False] * len(talks), 0))[:1])
        return np.concatenate(found)

    alone = read(0)
    for others in (1, 3, 7):
        np.testing.assert_array_equal(read(others), alone)


def test_logits_only_where_they_are_wanted() -> None:
    for head in (False, True):
        placement = Placement(EVERYWHERE.layers, head)
        model = build_hybrid(checkpoint("exact", False), placement, StandInDevice(), CpuBackend(threads=1))
        all_of_them = model.forward(
            Batch.of(model.sequence(CAPACITY), np.arange(20, dtype=np.int32), logits=None)
        )
        first, second = model.sequence(CAPACITY), model.sequence(CAPACITY)
        tokens = np.r_[0:3, 0:5].astype(np.int32)
        found = model.forward(Batch(tokens, (Span(first, 3, logits=0), Span(second, 5, logits=2))))
        assert_close(found, all_of_them[3:5])
        found = model.forward(Batch(tokens, (Span(first, 3, logits=0), Span(second, 5, logits=0))))
        assert found.shape == (0, 53)
        assert (first.length, second.length) == (6, 10)


def test_no_room_leaves_everything_as_it_was() -> None:
    model = build_hybrid(checkpoint("exact", False), EVERYWHERE, StandInDevice(), CpuBackend(threads=1))
    short, long = model.sequence(4), model.sequence(40)
    model.forward(Batch.of(long, np.arange(3, dtype=np.int32)))
    with pytest.raises(RequestError, match="5 tokens to append to 0: expected 1 to 4"):
        model.forward(Batch(np.arange(7, dtype=np.int32), (Span(long, 2), Span(short, 5))))
    assert (short.length, long.length) == (0, 3)
