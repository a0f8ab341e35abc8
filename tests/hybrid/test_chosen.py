"""The device's choice of cold neurons: bits, or scores where the host has to know them."""

from typing import Any

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import TensorType
from hotset.hybrid import transformer
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import Device, chosen_words
from hotset.testing.late import LateStandIn
from hotset.testing.stand_in import StandInDevice

SIZE, CAPACITY = 200, 64
NUMBER = 7


def checkpoint(plan: FFNPlan) -> Checkpoint:
    usual = random_checkpoint(hidden_size=32, ffn_size=SIZE, activation=Activation.RELU)
    order = [np.random.default_rng(i).permutation(SIZE) for i in range(usual.config.n_layers)]
    return quantised(by_neuron(usual, plan, order), TensorType.F16)


def conversations(model: Any, calls: list[list[tuple[int, bool]]]) -> tuple[list[Any], list[Any]]:
    """Logits of each call, spans of some rows of each sequence, and what choosers know at the end."""
    sequences = [model.sequence(CAPACITY, "f32") for _ in calls[0]]
    tokens = np.random.default_rng(1).integers(0, 53, (len(sequences), CAPACITY), dtype=np.int32)
    found = []
    for call in calls:
        spans = [
            (i, Span(s, count, lossless, count))
            for i, (s, (count, lossless)) in enumerate(zip(sequences, call, strict=True))
            if count and s.length + count <= CAPACITY
        ]
        if spans:
            own = [tokens[i, span.sequence.length :][: span.count] for i, span in spans]
            found.append(model.forward(Batch(np.concatenate(own), tuple(span for _, span in spans))))
    known = [(c.cutoff, c.work) for s in sequences for c in s.choosers if c]
    return found, known


CALLS = st.lists(
    st.lists(st.tuples(st.sampled_from([0, 1, 1, 3, 4]), st.sampled_from([False, False, False, True])),
             min_size=2, max_size=2),
    min_size=8, max_size=24,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    hot=st.tuples(st.integers(1, 199), st.integers(0, 200)),
    kept=st.sampled_from([0.0, 0.9]),
    score=st.sampled_from([Score.GATE_Q4, Score.GATE_Q2]),
    calls=CALLS,
    late=st.booleans(),
)
def test_bits_choose_what_scores_choose(
    hot: tuple[int, int], kept: float, score: Score, calls: list[list[tuple[int, bool]]], late: bool
) -> None:
    """To the bit, and what audits learn too: the other model goes layer by layer, where scores are sent."""
    model = checkpoint(FFNPlan(Way.PREDICTOR, score, cutoff=0.05, kept=kept))
    placement = Placement((LayerPlacement(True, hot[0]), LayerPlacement(True, hot[1])), True)
    devices = [LateStandIn(hot[0]) if late else StandInDevice(), StandInDevice()]
    if late:
        calls = calls[:6]
    results = []
    for device, most_rows in zip(devices, (8, 0), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformer, "MOST_ROWS", most_rows)
            built = build_hybrid(model, placement, device, CpuBackend(threads=1))
            results.append(conversations(built, calls))
            built.close()
    for found, expected in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert results[0][1] == results[1][1]


def test_audits_are_seen() -> None:
    """The other test would prove nothing about them otherwise."""
    model = checkpoint(FFNPlan(Way.PREDICTOR, Score.GATE_Q4, cutoff=0.05, kept=0.9))
    placement = Placement((LayerPlacement(True, 64),) * 2, True)
    built = build_hybrid(model, placement, StandInDevice(), CpuBackend(threads=1))
    _, known = conversations(built, [[(1, False), (3, False)]] * 20)
    assert all(work.audits > 1 and cutoff != 0.05 for cutoff, work in known)


def sent(device: Device, scores: NDArray[np.float32], cutoffs: NDArray[np.float32]) -> list[Any]:
    """What arrives of each row: its bits, or its scores."""
    rows, neurons = scores.shape
    bit_words = chosen_words(neurons) - neurons
    packet = device.pinned((rows, chosen_words(neurons)), np.uint64)
    control = device.pinned((2,), np.uint32)
    control[:] = NUMBER, rows
    arrays = [device.empty(scores.shape), device.empty((rows, 3))]
    table = np.zeros((rows, 3), np.float32)
    table[:, 1] = cutoffs
    with device.guard():
        device.begin(control)
        for array, values in zip(arrays, (scores, table), strict=True):
            device.upload(values, array)
        device.send_chosen(arrays[0], arrays[1][:, 1], packet)
        device.synchronize()
    found = []
    for row, cutoff in enumerate(cutoffs):
        numbers = np.isnan(cutoff)
        words = packet[row, bit_words:] if numbers else packet[row, :bit_words]
        out = np.zeros((1, words.size), np.float32)
        assert _native.take_packet(words[None].copy(), NUMBER, out, 1.0)
        found.append(out[0] if numbers else np.unpackbits(out.view(np.uint8), bitorder="little"))
        others = packet[row, :bit_words] if numbers else packet[row, bit_words:]
        assert not others.any()
    return found


@settings(max_examples=25, deadline=None)
@given(neurons=st.integers(1, 1100), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_what_devices_send(neurons: int, rows: int, seed: int) -> None:
    """Bits of the scores that are not less than the cut-off, NaN among them; with a cut-off NaN, scores."""
    interpreted = pytest.importorskip("hotset.testing.interpreted")
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((rows, neurons)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    cutoffs = rng.choice(np.array([0, np.nan, np.inf, -np.inf, scores[0, 0]], np.float32), rows)
    for device in (StandInDevice(), interpreted.InterpretedDevice()):
        for found, row, cutoff in zip(sent(device, scores, cutoffs), scores, cutoffs, strict=True):
            if np.isnan(cutoff):
                np.testing.assert_array_equal(found, row)
            else:
                np.testing.assert_array_equal(found[:neurons], ~(row < cutoff))
                assert not found[neurons:].any()
