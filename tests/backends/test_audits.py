"""Audits on the CPU backend: the definition's cut-offs, whatever else is computed and however it is cut."""

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.parts import LoneFFN

from hotset.backends.contract import F32, Linear, NeuronFFNSpec, Norm, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Span, Work
from hotset.core.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.formats.tensor import Tensor, TensorType

HIDDEN, NEURONS, WIDTH = 96, 300, 64
PLAN = FFNPlan(Way.PREDICTOR, Score.LOW_RANK, cutoff=1.0, kept=0.9)


@pytest.fixture(scope="module", params=CpuBackend.levels())
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    return CpuBackend(threads=2, level=request.param)


def ffn(
    type: TensorType = TensorType.F16, plan: FFNPlan = PLAN, activation: Activation = Activation.RELU
) -> NeuronFFNSpec:
    """With a predictor that knows some directions of the gate."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> F32:
        return rng.standard_normal(shape).astype(np.float32)

    def linear(name: str, values: F32, kind: TensorType = type) -> Linear:
        blocks = gguf.quantize(values, gguf.GGMLQuantizationType(int(kind)))
        data = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
        return Linear(Tensor(name, kind, values.shape, data))

    gate, up = (linear(name, numbers(NEURONS, HIDDEN) / np.float32(HIDDEN**0.5)) for name in ("gate", "up"))
    basis = np.linalg.qr(numbers(HIDDEN, WIDTH))[0].T
    predictor = (
        linear("fc1", basis, TensorType.F16),
        linear("fc2", gate.weight.to_float32() @ basis.T, TensorType.F16),
    )
    norm = Norm(NormKind.RMS, 1e-5, np.ones(HIDDEN, np.float32))
    down = linear("down", numbers(NEURONS, HIDDEN))
    return NeuronFFNSpec(norm, gate, up, down, activation, plan, predictor)


def inputs(tokens: int, seed: int = 9) -> F32:
    return np.random.default_rng(seed).standard_normal((tokens, HIDDEN)).astype(np.float32)


def run(layer: LoneFFN, x: F32, cuts: list[int], lossless: bool = False) -> F32:
    """Rows x in pieces that end at `cuts`."""
    out = np.zeros_like(x)
    for start, end in zip([0, *cuts], [*cuts, len(x)], strict=True):
        layer.forward(x[start:end].copy(), out[start:end], lossless)
    return out


@pytest.mark.parametrize("type", [TensorType.F16, TensorType.Q8_0])
def test_the_cutoff_is_the_definitions(backend: CpuBackend, type: TensorType) -> None:
    """A prompt, an answer, another prompt: the native core finds what the reference finds."""
    spec, x = ffn(type), inputs(400)
    found, expected = LoneFFN(backend, spec), LoneFFN(ReferenceBackend(), spec)
    for layer in (found, expected):
        run(layer, x[:100], [], lossless=True)
    # From plain rows on, 8-bit activations choose a little otherwise.
    close = 1e-3 if type is TensorType.F16 else 0.05
    assert found.cutoff == pytest.approx(expected.cutoff, abs=close)
    assert found.cutoff < 0.5  # it started at 1
    assert found.counts() == expected.counts() == Work()
    for start, end, lossless in ((100, 300, False), (300, 340, True), (340, 400, False)):
        for layer in (found, expected):
            run(layer, x[start:end], list(range(1, end - start)), lossless)
        assert found.cutoff == pytest.approx(expected.cutoff, abs=close)
    done, defined = found.counts(), expected.counts()
    assert (done.rows, done.audits) == (defined.rows, defined.audits) == (260, done.audits)
    assert done.audits > 10
    assert done.kept == pytest.approx(defined.kept, abs=0.1)
    assert done.kept / done.audits == pytest.approx(0.9, abs=0.03)
    assert done.chosen == pytest.approx(defined.chosen, rel=0.01)
    assert done.fired == done.read < done.chosen < 260 * NEURONS


def test_the_activation_wanted_is_kept(backend: CpuBackend) -> None:
    spec, x = ffn(), inputs(600)
    layer = LoneFFN(backend, spec)
    run(layer, x[:300], list(range(1, 300)))
    before = layer.counts()
    out = run(layer, x[300:], list(range(1, 300)))
    truth = LoneFFN(backend, replace(spec, plan=FFNPlan(Way.EXACT)))
    exact = run(truth, x[300:], list(range(1, 300)))
    fired = (layer.counts().fired - before.fired) / truth.counts().fired
    assert 0.6 < fired < 0.9  # what is left out adds little
    error = np.linalg.norm(out - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert error.mean() < 0.3


@pytest.mark.parametrize("type", [TensorType.F16, TensorType.Q4_0])
def test_cuts_change_no_bit(backend: CpuBackend, type: TensorType) -> None:
    spec, x = ffn(type), inputs(260)
    outs, cutoffs = [], []
    for prompt, answer in (([], list(range(1, 160))), ([9, 16, 47], [3, 10, 18, 60, 68, 76, 84, 150])):
        layer = LoneFFN(backend, spec)
        first = run(layer, x[:100], prompt, lossless=True)
        outs.append((first, run(layer, x[100:], answer)))
        cutoffs.append(layer.cutoff)
    assert cutoffs[0] == cutoffs[1]
    assert np.array_equal(outs[0][1], outs[1][1])


def test_neighbours_change_no_bit(backend: CpuBackend) -> None:
    """Two conversations in turn and together, each as when alone."""
    spec = ffn(TensorType.Q4_0)
    layer = backend.neuron_ffn(spec)
    x = [inputs(150, seed=1), inputs(150, seed=2) + 1]

    def sequence() -> Any:
        return backend.sequence(StateShape(1, 1, 32, (PLAN.cutoff,), (PLAN.kept,)), 256, "f16")

    def forward(rows: list[F32], sequences: list[Any], lossless: list[bool]) -> F32:
        spans = tuple(Span(s, len(r), ll) for s, r, ll in zip(sequences, rows, lossless, strict=True))
        joined = np.concatenate(rows)
        out = np.zeros_like(joined)
        layer.forward(joined, out, backend.view(Batch(np.zeros(len(joined), np.int32), spans)))
        for span in spans:
            span.sequence.advance(span.count)
        return out

    alone = []
    for rows in x:
        one = sequence()
        parts = [forward([rows[:40]], [one], [True])]
        parts += [forward([rows[i : i + 1]], [one], [False]) for i in range(40, 150)]
        alone.append((np.concatenate(parts), one.choosers[0].cutoff))
    pair = [sequence(), sequence()]
    found: list[list[F32]] = [[forward([x[0][:40]], pair[:1], [True])], []]
    # The second one's prompt is read beside the first one's answer.
    both = forward([x[0][40:41], x[1][:40]], pair, [False, True])
    found[0].append(both[:1])
    found[1].append(both[1:])
    for i in range(109):
        both = forward([x[0][41 + i : 42 + i], x[1][40 + i : 41 + i]], pair, [False, False])
        found[0].append(both[:1])
        found[1].append(both[1:])
    found[1].append(forward([x[1][149:]], pair[1:], [False]))
    for (expected, cutoff), parts, one in zip(alone, found, pair, strict=True):
        assert np.array_equal(np.concatenate(parts), expected)
        assert one.choosers[0].cutoff == cutoff
    assert alone[0][1] != alone[1][1]


def test_forks_and_going_back(backend: CpuBackend) -> None:
    spec, x = ffn(), inputs(200)
    layer = LoneFFN(backend, spec)
    run(layer, x[:100], list(range(1, 100)))
    then, fork = layer.cutoff, layer.sequence.fork()
    last = run(layer, x[100:], list(range(1, 100)))
    after = layer.cutoff
    assert after != then
    assert fork.choosers[0].cutoff == then
    assert fork.choosers[0].work == Work()
    # What is computed again from there, in either, is the same.
    layer.sequence.rewind(100)
    assert layer.cutoff == then
    assert np.array_equal(run(layer, x[100:], list(range(1, 100))), last)
    assert layer.cutoff == after
    layer.sequence = fork
    assert np.array_equal(run(layer, x[100:], list(range(1, 100))), last)
    layer.sequence.rewind(0)
    assert layer.cutoff == PLAN.cutoff


def test_predictors_of_powerinfers_kind_are_audited(backend: CpuBackend) -> None:
    """A ReLU between the matrices, and the input before the norm."""
    plan = replace(PLAN, score=Score.LOW_RANK_RELU, raw_input=True)
    spec, x = ffn(plan=plan), inputs(200)
    found, expected = LoneFFN(backend, spec), LoneFFN(ReferenceBackend(), spec)
    for layer in (found, expected):
        run(layer, x[:60], [], lossless=True)
        run(layer, x[60:], list(range(1, 140)))
    assert found.cutoff == pytest.approx(expected.cutoff, abs=2e-3)
    assert found.counts().kept / found.counts().audits == pytest.approx(0.9, abs=0.05)


def test_without_a_share_to_keep_nothing_moves(backend: CpuBackend) -> None:
    layer = LoneFFN(backend, ffn(plan=replace(PLAN, kept=0.0)))
    run(layer, inputs(200), [60], lossless=True)
    run(layer, inputs(100), list(range(1, 100)))
    assert layer.cutoff == PLAN.cutoff
    assert layer.counts().audits == 0
