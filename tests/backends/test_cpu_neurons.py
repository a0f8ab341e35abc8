"""FFNs stored by neuron: the CPU backend against the reference, on every instruction set of this machine."""

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.parts import LoneFFN
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset.backends.contract import F32, Linear, NeuronFFNSpec, Norm
from hotset.backends.cpu import CpuBackend
from hotset.backends.cpu import backend as backend_module
from hotset.backends.low_bit import low_bit_copy, two_bit_blocks
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Work
from hotset.core.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats.tensor import Tensor, TensorType

TYPES = (TensorType.F16, TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_1)
EXACT, DENSE = FFNPlan(Way.EXACT), FFNPlan(Way.DENSE)


@pytest.fixture(scope="module", params=CpuBackend.levels())
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    return CpuBackend(threads=2, level=request.param)


def matrix(name: str, values: F32, type: TensorType) -> Tensor:
    blocks = gguf.quantize(values.astype(np.float32), gguf.GGMLQuantizationType(int(type)))
    return Tensor(name, type, values.shape, np.ascontiguousarray(blocks).reshape(-1).view(np.uint8))


def ffn(
    type: TensorType = TensorType.Q4_0,
    *,
    hidden: int = 96,
    size: int = 77,
    activation: Activation = Activation.RELU,
    gated: bool = True,
    plan: FFNPlan = EXACT,
    width: int = 32,
    shift: float = 0.0,
    bias: bool = False,
    post_norm: bool = False,
    seed: int = 0,
) -> NeuronFFNSpec:
    """``shift`` moves the activation's input through its bias, and so how many neurons fire."""
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> F32:
        return rng.standard_normal(shape).astype(np.float32)

    def linear(name: str, rows: int, cols: int, offset: float | None = None) -> Linear:
        wanted = numbers(rows) / 4 + (offset or 0) if bias or offset else None
        return Linear(matrix(name, numbers(rows, cols) / np.float32(cols**0.5), type), wanted)

    gate = linear("gate", size, hidden, shift) if gated else None
    up = linear("up", size, hidden, None if gated else shift)
    first = (gate or up).weight.to_float32()
    # A predictor that knows some of the gate: its product with a few directions.
    basis = np.linalg.qr(numbers(hidden, width))[0].T
    predictor = (
        Linear(matrix("fc1", basis, TensorType.F16)),
        Linear(matrix("fc2", first @ basis.T, TensorType.F16)),
    )
    down = Linear(matrix("down", numbers(size, hidden), type), numbers(hidden) if bias else None)
    norm = Norm(NormKind.RMS, 1e-5, 1 + numbers(hidden) / 4)
    low_rank = plan.score in (Score.LOW_RANK, Score.LOW_RANK_RELU)
    return NeuronFFNSpec(
        norm, gate, up, down, activation, plan, predictor if low_rank else (), norm if post_norm else None
    )


def run(layer: LoneFFN, x: F32, dense: bool = False) -> F32:
    out = np.zeros_like(x)
    layer.forward(x.copy(), out, dense)
    return out


def inputs(tokens: int, hidden: int, seed: int = 9) -> F32:
    return np.random.default_rng(seed).standard_normal((tokens, hidden)).astype(np.float32)


def assert_close(found: F32, expected: F32, tolerance: float) -> None:
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * max(1e-3, np.abs(expected).max())


# Activations are rounded to eight bits for quantised weights.
TOLERANCE = {TensorType.F16: 2e-5} | dict.fromkeys(TYPES[1:], 0.02)
FUNCTIONS = [
    (Activation.RELU, True),
    (Activation.RELU, False),
    (Activation.DRELU, True),
    (Activation.RELU2, True),
    (Activation.RELU2, False),
]


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(("activation", "gated"), FUNCTIONS)
def test_exact_and_dense_against_the_reference(
    backend: CpuBackend, activation: Activation, gated: bool, type: TensorType, tokens: int
) -> None:
    x = inputs(tokens, 96)
    spec = ffn(type, activation=activation, gated=gated, bias=tokens == 3, post_norm=tokens == 8)
    expected = run(LoneFFN(ReferenceBackend(), spec), x)
    for plan in (EXACT, DENSE):
        assert_close(run(LoneFFN(backend, replace(spec, plan=plan)), x), expected, TOLERANCE[type])


@settings(max_examples=60, deadline=None)
@given(
    type=st.sampled_from(TYPES),
    blocks=st.integers(1, 20),
    size=st.integers(1, 200),
    shift=st.sampled_from([-50.0, -1.5, 0.0, 1.5, 50.0]),
    function=st.sampled_from(FUNCTIONS),
    tokens=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_exact_is_dense_at_any_density_and_order(
    backend: CpuBackend,
    type: TensorType,
    blocks: int,
    size: int,
    shift: float,
    function: tuple[Activation, bool],
    tokens: int,
    seed: int,
) -> None:
    activation, gated = function
    spec = ffn(
        type, hidden=32 * blocks, size=size, activation=activation, gated=gated, shift=shift, seed=seed
    )
    x = inputs(tokens, 32 * blocks)
    dense = run(LoneFFN(backend, replace(spec, plan=DENSE)), x)
    assert np.array_equal(run(LoneFFN(backend, spec), x), dense)
    order = np.random.default_rng(seed).permutation(size)
    assert_close(run(LoneFFN(backend, permuted(spec, order)), x), dense, 1e-4)


def permuted(spec: NeuronFFNSpec, order: NDArray[np.int64]) -> NeuronFFNSpec:
    def rows(linear: Linear, biased: bool) -> Linear:
        weight, bias = linear.weight, linear.bias
        data = weight.data.reshape(weight.shape[0], -1)[order].reshape(-1)
        bias = bias[order] if biased and bias is not None else bias
        return Linear(Tensor(weight.name, weight.type, weight.shape, data), bias)

    gate = rows(spec.gate, True) if spec.gate else None
    return replace(spec, gate=gate, up=rows(spec.up, True), down_t=rows(spec.down_t, False))


@pytest.mark.parametrize("type", TYPES)
def test_any_number_of_threads_gives_the_same_bits(type: TensorType) -> None:
    spec = ffn(type, hidden=320, size=901, plan=FFNPlan(Way.PREDICTOR, Score.LOW_RANK, -0.5), width=64)
    x = inputs(1, 320)
    results = [run(LoneFFN(CpuBackend(threads=n), spec), x) for n in (1, 2, 3)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize(("parts", "expected"), [(16, 9), (64, 32)])
def test_parts_follow_the_machine_and_not_the_threads(parts: int, expected: int) -> None:
    spec = ffn(hidden=64, size=3000, plan=FFNPlan(Way.PREDICTOR, Score.LOW_RANK, -0.5))
    x = inputs(3, 64)
    results = []
    for threads in (1, 2, 8, 16):
        backend = CpuBackend(threads, parts=parts)
        assert backend.parts == parts
        layer = LoneFFN(backend, spec)
        assert layer.layer.parts == expected
        results.append(run(layer, x))
    assert all(np.array_equal(found, results[0]) for found in results[1:])
    assert_close(results[0], run(LoneFFN(CpuBackend(1, parts=1), spec), x), TOLERANCE[TensorType.Q4_0])


def test_parts_are_sixteen_or_four_to_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, parts in ((1, 16), (4, 16), (12, 48), (4096, 2048)):
        monkeypatch.setattr(backend_module, "physical_cores", lambda cores=cores: cores)
        assert CpuBackend(threads=1).parts == parts
    with pytest.raises(HotsetError, match="parts: expected 1 to 2048, found 0"):
        CpuBackend(parts=0)


CHOICES = [
    FFNPlan(Way.THRESHOLD, Score.GATE, 0.3),
    FFNPlan(Way.THRESHOLD, Score.DOWN, 2.0),
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK, -0.1),
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, 0.1),
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, 0.1, raw_input=True),
    FFNPlan(Way.PREDICTOR, Score.GATE_Q4, -0.05),
    FFNPlan(Way.PREDICTOR, Score.GATE_Q2, -0.2),
]


@pytest.mark.parametrize("plan", CHOICES, ids=lambda p: f"{p.score.value}{'-raw' * p.raw_input}")
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize(
    ("activation", "gated"), [*FUNCTIONS, (Activation.SILU, True), (Activation.GELU_TANH, False)]
)
def test_choices_against_the_reference(
    backend: CpuBackend, activation: Activation, gated: bool, tokens: int, plan: FFNPlan
) -> None:
    """In F16 scores are nearly the same numbers, so that the same neurons reach the cut-off."""
    spec = ffn(TensorType.F16, activation=activation, gated=gated, plan=plan, size=130, width=64)
    x = inputs(tokens, 96)
    expected, layer = LoneFFN(ReferenceBackend(), spec), LoneFFN(backend, spec)
    wanted, found = run(expected, x), run(layer, x)
    dense = run(LoneFFN(ReferenceBackend(), replace(spec, plan=DENSE)), x)
    # The copies meet activations of eight bits: a neuron or two at the cut-off may differ.
    assert np.abs(found - wanted).max() < 0.35 * np.abs(dense).max()
    assert np.linalg.norm(found - wanted) < 0.12 * np.linalg.norm(dense)
    read = (expected.counts().read, layer.counts().read)
    if tokens == 1:
        assert abs(read[0] - read[1]) <= 3
        assert layer.counts().rows == 1
        assert 0 < layer.counts().fired <= read[1] < 130


def test_a_token_gets_only_its_own_neurons(backend: CpuBackend) -> None:
    """Of several tokens the union is computed, but each adds up only what it has chosen."""
    spec = ffn(TensorType.F16, plan=FFNPlan(Way.THRESHOLD, Score.DOWN, 3.0), activation=Activation.SILU)
    x = inputs(6, 96)
    layer = LoneFFN(backend, spec)
    together = run(layer, x)
    alone = np.concatenate([run(layer, x[i : i + 1]) for i in range(6)])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("plan", CHOICES, ids=lambda p: f"{p.score.value}{'-raw' * p.raw_input}")
@pytest.mark.parametrize("tokens", [1, 3, 8])
@pytest.mark.parametrize(
    ("activation", "gated"), [(Activation.RELU, True), (Activation.RELU2, False), (Activation.SILU, True)]
)
def test_dense_calls_leave_nothing_out(
    backend: CpuBackend, activation: Activation, gated: bool, tokens: int, plan: FFNPlan
) -> None:
    """As if every score reached the cut-off, to the bit whatever that is, and nothing is counted."""
    x = inputs(tokens, 96)
    for type in (TensorType.F16, TensorType.Q4_0):
        spec = ffn(type, activation=activation, gated=gated, plan=plan, size=130, bias=tokens == 3)
        none, all = (replace(spec, plan=replace(plan, cutoff=cutoff)) for cutoff in (1e9, -1e9))
        dense = replace(spec, plan=DENSE)
        layer = LoneFFN(backend, none)
        found = run(layer, x, dense=True)
        assert np.array_equal(found, run(LoneFFN(backend, all), x, dense=True))
        assert_close(found, run(LoneFFN(backend, all), x), 2e-5 if type is TensorType.F16 else 2e-3)
        expected = run(LoneFFN(backend, dense), x, dense=True)
        assert_close(found, expected, 1e-4)
        if plan.score is Score.DOWN and not activation.zero_producing:  # what dense reads lies alike
            assert np.array_equal(found, expected)
        assert layer.counts() == Work()
        assert np.abs(run(layer, x) - found).max() > 0.1
        assert layer.counts().rows == tokens

        reference = LoneFFN(ReferenceBackend(), none)
        found, expected = run(reference, x, dense=True), run(LoneFFN(ReferenceBackend(), dense), x)
        assert np.array_equal(found, expected)
        assert reference.counts() == Work()


def test_dense_calls_change_nothing_for_exact(backend: CpuBackend) -> None:
    spec, x = ffn(), inputs(1, 96)
    for made in (backend, ReferenceBackend()):
        usual, dense = LoneFFN(made, spec), LoneFFN(made, spec)
        assert_close(run(usual, x), run(dense, x, dense=True), 2e-3)
        assert 0 < usual.counts().read < 77
        assert dense.counts() == Work()


@pytest.mark.parametrize("plan", [EXACT, DENSE, CHOICES[0], CHOICES[1], CHOICES[2]])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("type", TYPES)
def test_neurons_for_profiles(backend: CpuBackend, type: TensorType, gated: bool, plan: FFNPlan) -> None:
    spec = ffn(type, plan=plan, gated=gated, bias=True)
    for tokens in (1, 5, 33):
        x = inputs(tokens, 96)
        found, expected = (np.empty((2, tokens, 77), np.float32) for _ in range(2))
        LoneFFN(backend, spec).neurons(x, *found)
        LoneFFN(ReferenceBackend(), spec).neurons(x, *expected)
        assert_close(found[0], expected[0], TOLERANCE[type])
        assert_close(found[1], expected[1], TOLERANCE[type])


def test_two_bit_copies_are_near_the_best() -> None:
    weight = inputs(64, 320)
    copy = low_bit_copy(weight, 2)
    error = ((copy - weight) ** 2).mean() / (weight**2).mean()
    assert error < 0.12  # 0.1188 is the least for normal numbers with one scale for all
    assert len(np.unique(np.abs(copy[0, :32]))) == 2
    assert np.array_equal(low_bit_copy(np.zeros((2, 32), np.float32), 2), np.zeros((2, 32)))
    assert two_bit_blocks(weight).shape == (64, 10, 10)


def refused(plan: FFNPlan = EXACT, **options: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        LoneFFN(CpuBackend(threads=1), ffn(plan=plan, **options))
    return str(error.value)


def test_types_of_which_no_row_can_be_read_are_rounded(backend: CpuBackend) -> None:
    """To the nearest that can: what is computed is as if the file had that type."""
    spec, x = ffn(TensorType.F16), inputs(3, 96)
    plain = replace(
        spec.down_t.weight,
        type=TensorType.F32,
        data=spec.down_t.weight.to_float32().view(np.uint8).reshape(-1),
    )
    found = LoneFFN(backend, replace(spec, down_t=Linear(plain, spec.down_t.bias)))
    assert np.array_equal(run(found, x), run(LoneFFN(backend, spec), x))


def test_what_cannot_run_is_refused() -> None:
    assert "silu is never zero" in refused(activation=Activation.SILU)
    assert "drelu needs a gate" in refused(activation=Activation.DRELU, gated=False)
    assert "multiple of 32 numbers, found 40" in refused(
        FFNPlan(Way.PREDICTOR, Score.GATE_Q2), type=TensorType.F16, hidden=40
    )
