"""The CPU backend's experts stored by neuron: against the reference, to the bit against each other."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.experts import experts_spec, numbers

from hotset.backends.contract import F32, ExpertsSpec, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.backends.cpu.experts import CpuExperts
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Sequence, Span
from hotset.core.config import Activation, FFNPlan, Gating, Score, Way
from hotset.core.errors import CheckpointError
from hotset.formats.tensor import TensorType

HIDDEN = 256
EXACT, DENSE = FFNPlan(Way.EXACT), FFNPlan(Way.DENSE)
Q = TensorType


def mixture(activation: Activation = Activation.RELU, kind: Q = Q.F32, **options: object) -> ExpertsSpec:
    options = {"hidden": HIDDEN, "size": 96, "plan": EXACT} | options
    return experts_spec(activation=activation, kind=kind, **options)  # type: ignore[arg-type]


MIXTURES = {
    "relu": mixture(kind=Q.F16),
    "biased": mixture(kind=Q.F16, biased=True, post_norm=True),
    "relu2": mixture(Activation.RELU2, Q.F16, gated=False, shared=64, gating=Gating.SIGMOID),
    "relu2 biased": mixture(Activation.RELU2, Q.F16, gated=False, biased=True),
    "drelu": mixture(Activation.DRELU, Q.F16, shared=96, switch=False),
    "eight bits": mixture(kind=Q.Q8_0, count=10, used=4),
    "four bits": mixture(kind=Q.Q4_0, down=Q.Q8_0, size=800, count=4),
    "four bits with a minimum": mixture(kind=Q.Q4_1, down=Q.Q4_1, gated=False, activation=Activation.RELU2),
    "single precision": mixture(),
}


@pytest.fixture(scope="module", params=CpuBackend.levels())
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    return CpuBackend(threads=2, level=request.param)


def sequences(backend: CpuBackend, count: int) -> list[Sequence]:
    return [backend.sequence(StateShape(1, 1, 32, (0.0,)), 64, "f16") for _ in range(count)]


def computed(
    backend: CpuBackend, layer: CpuExperts, x: F32, *, lossless: bool = False, logits: F32 | None = None
) -> F32:
    """The result for rows of sequences of their own."""
    spans = tuple(Span(s, 1, lossless=lossless) for s in sequences(backend, len(x)))
    out = np.zeros_like(x)
    layer.forward(x, out, backend.view(Batch(np.zeros(len(x), np.int32), spans)), logits)
    return out


@pytest.mark.parametrize("lossless", [False, True], ids=["decoding", "prompt"])
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_by_neuron(backend: CpuBackend, name: str, lossless: bool) -> None:
    spec = MIXTURES[name]
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    x = numbers(7, 40, HIDDEN)
    for rows in (1, 5, 17, 40):
        expected = np.zeros((rows, HIDDEN), np.float32)
        reference.forward(x[:rows], expected)
        found = computed(backend, layer, x[:rows], lossless=lossless)
        # Q8_0 rounds activations to 8 bits, of the neurons' values too in other layouts.
        far = 2e-2 if spec.up.weight.type in (Q.Q8_0, Q.Q4_0, Q.Q4_1) else 2e-3
        assert np.abs(found - expected).max() < far * np.abs(expected).max()
        assert np.abs(expected).max() > 0.05


@pytest.mark.parametrize("name", ["biased", "relu2", "drelu", "eight bits", "four bits"])
def test_neurons_that_are_left_out_change_no_bit(backend: CpuBackend, name: str) -> None:
    spec = MIXTURES[name]
    x = numbers(8, 17, HIDDEN)
    exact = computed(backend, backend.experts(spec), x)
    np.testing.assert_array_equal(computed(backend, backend.experts(spec), x, lossless=True), exact)
    np.testing.assert_array_equal(computed(backend, backend.experts(replace(spec, plan=DENSE)), x), exact)


@pytest.mark.parametrize("lossless", [False, True], ids=["decoding", "prompt"])
@pytest.mark.parametrize("name", ["eight bits", "four bits", "four bits with a minimum"])
def test_rows_do_not_depend_on_neighbours_or_threads(backend: CpuBackend, name: str, lossless: bool) -> None:
    spec = MIXTURES[name]
    layer = backend.experts(spec)
    x = numbers(9, 40, HIDDEN)
    together = computed(backend, layer, x, lossless=lossless)
    for rows in ([0], [3, 39], list(range(0, 40, 2)), list(range(20, 40))):
        np.testing.assert_array_equal(computed(backend, layer, x[rows], lossless=lossless), together[rows])
    alone = CpuBackend(threads=1, level=backend.level)
    np.testing.assert_array_equal(computed(alone, alone.experts(spec), x, lossless=lossless), together)


def test_prompts_beside_decoding(backend: CpuBackend) -> None:
    layer = backend.experts(MIXTURES["eight bits"])
    x = numbers(10, 9, HIDDEN)
    logits = layer.route(x)
    a, b, c = sequences(backend, 3)
    spans = (
        Span(a, 1, lossless=False),
        Span(b, 7, lossless=True),
        Span(c, 1, lossless=False),
    )
    out = x.copy()
    layer.forward(out, out, backend.view(Batch(np.zeros(len(x), np.int32), spans)), logits)
    prompt, decoded = slice(1, 8), [0, 8]
    np.testing.assert_array_equal(
        out[prompt] - x[prompt],
        (x[prompt] + computed(backend, layer, x[prompt], lossless=True, logits=logits[prompt])) - x[prompt],
    )
    np.testing.assert_array_equal(
        out[decoded], x[decoded] + computed(backend, layer, x[decoded], logits=logits[decoded])
    )
    assert [s.choosers[0].work.rows for s in (a, b, c)] == [1, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["biased", "relu2 biased", "drelu"])
def test_neurons_and_what_is_counted(backend: CpuBackend, name: str) -> None:
    spec = MIXTURES[name]
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    x = numbers(11, 3, HIDDEN)
    width = spec.shape.count * spec.shape.size
    found, expected = np.empty((2, 3, width), np.float32), np.empty((2, 3, width), np.float32)
    layer.neurons(x, *found)
    reference.neurons(x, *expected)
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-3 * np.abs(other).max())

    own = sequences(backend, 3)
    spans = tuple(Span(sequence, 1, lossless=False) for sequence in own)
    layer.forward(x, np.zeros_like(x), backend.view(Batch(np.zeros(len(x), np.int32), spans)))
    for row, sequence in enumerate(own):
        chooser = sequence.choosers[0]
        assert chooser
        fired = np.count_nonzero(found[1, row])
        assert 0 < fired < spec.shape.used * spec.shape.size
        assert chooser.work.rows == 1
        assert (chooser.work.fired, chooser.work.read) == (fired, fired)


def test_experts_are_packed_within_a_budget() -> None:
    spec = mixture(kind=Q.Q8_0, count=10, used=2)
    x = numbers(12, 30, HIDDEN)
    free = CpuBackend(threads=2)
    kept = free.experts(spec)
    expected = computed(free, kept, x)
    whole = free.packed_experts
    assert 3 < whole.experts <= 10
    tight = CpuBackend(threads=2, ram=3 * whole.nbytes // whole.experts)
    layer = tight.experts(spec)
    for row in range(len(x)):
        np.testing.assert_array_equal(computed(tight, layer, x[row : row + 1]), expected[row : row + 1])
    assert tight.packed_experts.experts <= 3
    assert tight.packed_experts.evictions > 0


def test_plans_that_experts_cannot_follow() -> None:
    backend = CpuBackend(threads=1)
    with pytest.raises(CheckpointError, match="exact: silu is never zero"):
        backend.experts(mixture(Activation.SILU))
    with pytest.raises(CheckpointError, match="dense or exact, found threshold"):
        backend.experts(mixture(plan=FFNPlan(Way.THRESHOLD, Score.GATE, 0.1)))
