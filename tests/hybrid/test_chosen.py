"""The device's choice of cold neurons: bits, or scores where the host has to know them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset.backends.contract import StateShape
from hotset.backends.cpu import CpuBackend
from hotset.backends.maths import normalise
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import TensorType
from hotset.hybrid import transformer
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import Device, chosen_words
from hotset.hybrid.executor import Executor
from hotset.hybrid.ffn import build_split
from hotset.hybrid.parts import HybridLayer, OnHost
from hotset.hybrid.plan_step import plan_step
from hotset.model.build import build_transformer, neuron_ffn_spec
from hotset.testing.late import LateStandIn
from hotset.testing.stand_in import StandInDevice


def interpreted() -> Any:
    """The GPU's kernels, where Triton is: on Linux."""
    try:
        from hotset.testing.interpreted import InterpretedDevice
    except ImportError:
        return StandInDevice()
    return InterpretedDevice()


DEVICES = {"stand-in": StandInDevice, "late": LateStandIn, "interpreter": interpreted}

SIZE, CAPACITY = 200, 64
NUMBER = 7


def checkpoint(plan: FFNPlan, type: TensorType = TensorType.F16, **options: Any) -> Checkpoint:
    usual = random_checkpoint(ffn_size=SIZE, **{"hidden_size": 32, "activation": Activation.RELU, **options})
    order = [np.random.default_rng(i).permutation(SIZE) for i in range(usual.config.n_layers)]
    return quantised(by_neuron(usual, plan, order), type)


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


FUNCTIONS = [
    (Activation.RELU, True),
    (Activation.RELU, False),
    (Activation.DRELU, True),
    (Activation.RELU2, False),
]


@pytest.mark.parametrize(("device", "most_calls"), [("stand-in", 24), ("late", 4), ("interpreter", 3)])
@settings(max_examples=6, deadline=None)
@given(
    function=st.sampled_from(FUNCTIONS),
    type=st.sampled_from([TensorType.F16, TensorType.Q8_0]),
    hot=st.tuples(st.integers(1, 199), st.integers(0, 200)),
    gates=st.tuples(st.booleans(), st.booleans()),
    parallel=st.booleans(),
    calls=CALLS,
)
def test_gates_on_the_device_lose_nothing(
    function: tuple[Activation, bool],
    type: TensorType,
    hot: tuple[int, int],
    gates: tuple[bool, bool],
    parallel: bool,
    calls: list[list[tuple[int, bool]]],
    device: str,
    most_calls: int,
) -> None:
    """The host is told who fires, and with which activations: steps equal the dense model, as prompts do."""
    plan = FFNPlan(Way.EXACT)
    model = checkpoint(plan, type, activation=function[0], gated=function[1], parallel=parallel)
    layers = tuple(LayerPlacement(True, h, gates=g) for h, g in zip(hot, gates, strict=True))
    calls = calls[:most_calls]
    built = build_hybrid(model, Placement(layers, True), DEVICES[device](), CpuBackend(threads=1))
    expected, truth = conversations(build_transformer(model, CpuBackend(threads=1)), calls)
    found, known = conversations(built, calls)
    built.close()
    # Quantised, activations are rounded to eight bits on either side, each in its own way.
    tolerance = 1e-3 if type is TensorType.F16 else 0.03
    for logits, right in zip(found, expected, strict=True):
        assert np.abs(logits - right).max() <= tolerance * np.abs(right).max()
    for (_, work), (_, all_of) in zip(known, truth, strict=True):
        assert work.rows in (0, all_of.rows)  # none, where a layer is the device's
        assert work.fired <= all_of.fired + 0.02 * all_of.rows * SIZE


def test_the_host_reads_up_and_down_only() -> None:
    """By hand: what the device says is taken for the activations, whatever the host's gates say."""
    model = checkpoint(FFNPlan(Way.EXACT), hidden_size=32)
    spec = neuron_ffn_spec(model, 0, FFNPlan(Way.EXACT))
    values = np.zeros((1, 136), np.float32)
    chosen = [0, 31, 32, 70, 135]
    values[0, chosen] = 1, 2, 3, 4, 5
    device = StandInDevice()
    host = CpuBackend(threads=1)
    split = build_split(spec, 64, device, host, gates=True)
    assert split.values
    parts = [HybridLayer(None, replace(split, predict=lambda x: values))]
    step = plan_step(parts, OnHost(None), hidden=32, vocab_size=53, parallel=False)  # type: ignore[arg-type]
    executor = Executor(step, device)
    sequences = [b.sequence(StateShape(1, 1, 32, (None,)), 64, "f32") for b in (device.backend, host)]
    x = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    tokens = np.zeros(1, np.int32)
    sequences[1] = host.sequence(StateShape(1, 1, 32, (0.0,)), 64, "f32")
    batches = [Batch.of(sequence, tokens) for sequence in sequences]
    found = executor.run(x, None, batches[0], host.view(batches[1]))[0].copy()
    executor.close()
    hot = x.copy()
    split.hot.forward(x, hot, None)
    up = normalise(x, spec.norm) @ spec.up.weight.to_float32()[64:].T
    expected = hot + (values * up) @ spec.down_t.weight.to_float32()[64:]
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    assert sequences[1].choosers[0].work.fired == len(chosen)


def packets(
    device: Device, scores: NDArray[np.float32], cutoffs: NDArray[np.float32], values: bool
) -> NDArray[np.uint64]:
    """What is sent of each row."""
    packet = device.pinned((len(scores), chosen_words(scores.shape[1])), np.uint64)
    control = device.pinned((2,), np.uint32)
    control[:] = NUMBER, len(scores)
    arrays = [device.empty(scores.shape), device.empty((len(scores), 3))]
    table = np.zeros((len(scores), 3), np.float32)
    table[:, 1] = cutoffs
    with device.guard():
        device.begin(control)
        for array, numbers in zip(arrays, (scores, table), strict=True):
            device.upload(numbers, array)
        device.send_chosen(arrays[0], arrays[1][:, 1], packet, values=values)
        device.synchronize()
    return packet


def data(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Of words that have come."""
    assert (words >> np.uint64(32) == NUMBER).all()
    return words.astype(np.uint32).view(np.float32)


@settings(max_examples=30, deadline=None)
@given(neurons=st.integers(1, 1100), rows=st.integers(1, 3), values=st.booleans(), seed=st.integers(0, 99))
def test_what_devices_send(neurons: int, rows: int, values: bool, seed: int) -> None:
    """Bits of the scores that are not less than the cut-off, NaN among them, and their values if asked for.

    With a cut-off NaN, all scores. Nothing else is written.
    """
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((rows, neurons)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    cutoffs = rng.choice(np.array([0, 1, np.nan, np.inf, -np.inf, scores[0, 0]], np.float32), rows)
    bit_words = chosen_words(neurons) - neurons
    for device in (StandInDevice(), interpreted()):
        sent = packets(device, scores, cutoffs, values)
        for words, row, cutoff in zip(sent, scores, cutoffs, strict=True):
            numbers = words[bit_words:]
            if np.isnan(cutoff):
                np.testing.assert_array_equal(data(numbers), row)
                assert not words[:bit_words].any()
                continue
            bits = np.unpackbits(data(words[:bit_words]).view(np.uint8), bitorder="little")
            assert not bits[neurons:].any()
            reached = ~(row < cutoff)
            np.testing.assert_array_equal(bits[:neurons], reached)
            for first in range(0, neurons, 32):
                own = row[first : first + 32][reached[first : first + 32]]
                place = numbers[first : first + 32]
                count = len(own) if values else 0
                np.testing.assert_array_equal(data(place[:count]), own[:count])
                assert not place[count:].any()
