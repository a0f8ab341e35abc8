"""The CPU backend's mixtures of experts: against the reference backend's, row by row, and when packed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_tensors import random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.contract import F32, ExpertsSpec, Linear, Norm, SharedExpertSpec
from hotset.backends.cpu import CpuBackend
from hotset.backends.maths import route
from hotset.backends.reference import ReferenceBackend
from hotset.core.config import Activation, ExpertsConfig, Gating, NormKind
from hotset.core.errors import CheckpointError
from hotset.formats.mapped import map_file
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array

HIDDEN = 256
ROWS = (1, 2, 5, 17, 40)
Q = TensorType


@pytest.fixture(scope="module", params=CpuBackend.levels())
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    return CpuBackend(threads=2, level=request.param)


def numbers(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrix(seed: int, type: Q, *shape: int, bias: bool = False) -> Linear:
    """Random weights (rows, cols), or (experts, rows, cols)."""
    rows = int(np.prod(shape[:-1]))
    if type is Q.F32:
        weight = tensor_from_array(f"weight_{seed}", numbers(seed, *shape) / np.float32(shape[-1] ** 0.5))
    else:
        flat = random_tensor(type, rows, shape[-1], seed)
        weight = Tensor(f"weight_{seed}", type, shape, flat.data)
    return Linear(weight, numbers(seed + 1, *shape[:-1]) if bias else None)


def mixture(
    types: tuple[Q, Q, Q] = (Q.F32, Q.F32, Q.F32),
    *,
    count: int = 6,
    used: int = 3,
    size: int = 96,
    activation: Activation = Activation.SILU,
    gated: bool = True,
    bias: bool = False,
    shared: int = 0,
    switch: bool = False,
    post_norm: bool = False,
    selection_bias: bool = False,
    router: Q = Q.F32,
    **shape: object,
) -> ExpertsSpec:
    norm = Norm(NormKind.RMS, 1e-5, 1 + numbers(1, HIDDEN) / 4)
    return ExpertsSpec(
        norm=norm,
        router=matrix(2, router, count, HIDDEN, bias=bias),
        gate=matrix(10, types[0], count, size, HIDDEN, bias=bias) if gated else None,
        up=matrix(20, types[1], count, size, HIDDEN, bias=bias),
        down=matrix(30, types[2], count, HIDDEN, size, bias=bias),
        activation=activation,
        shape=ExpertsConfig(count, used, size, shared, **shape),  # type: ignore[arg-type]
        selection_bias=numbers(3, count) / 4 if selection_bias else None,
        shared=SharedExpertSpec(
            gate=matrix(40, types[0], shared, HIDDEN) if gated else None,
            up=matrix(50, types[1], shared, HIDDEN),
            down=matrix(60, types[2], HIDDEN, shared),
            switch=matrix(70, Q.F32, 1, HIDDEN) if switch else None,
        )
        if shared
        else None,
        post_norm=replace(norm, weight=1 + numbers(4, HIDDEN) / 4) if post_norm else None,
    )


MIXTURES = {
    "softmax": mixture(),
    "not normalised": mixture(normalised=False, scale=2.5),
    "sigmoid": mixture(count=10, gating=Gating.SIGMOID, selection_bias=True, scale=1.5),
    "selected": mixture(
        count=10,
        gating=Gating.SELECTED,
        normalised=False,
        bias=True,
        activation=Activation.SWIGLU_CLAMPED,
    ),
    "groups": mixture(count=10, gating=Gating.SIGMOID, groups=5, groups_used=2, selection_bias=True),
    "shared": mixture(shared=64, switch=True),
    "shared, always": mixture(shared=160, post_norm=True),
    "no gate": mixture(activation=Activation.RELU2, gated=False, shared=32),
    "one of many": mixture(count=33, used=1, size=32, activation=Activation.GELU_TANH),
    "all": mixture(count=3, used=3),
    "half router": mixture(router=Q.F16),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_experts(backend: CpuBackend, name: str) -> None:
    spec = MIXTURES[name]
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    for rows in ROWS:
        x = numbers(rows, rows, HIDDEN)
        found, expected = x.copy(), x.copy()
        layer.forward(found, found, None)  # in place, as the decoder does
        reference.forward(x, expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        assert np.abs(expected - x).max() > 0.1


@pytest.mark.parametrize("name", ["softmax", "selected", "no gate", "shared"])
def test_neurons(name: str) -> None:
    spec = MIXTURES[name]
    x, shape = numbers(9, 5, HIDDEN), (5, spec.shape.count * spec.shape.size)
    found, expected = np.ones((2, *shape), np.float32), np.empty((2, *shape), np.float32)
    CpuBackend(2).experts(spec).neurons(x, found[0], found[1])
    ReferenceBackend().experts(spec).neurons(x, expected[0], expected[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_early_router() -> None:
    spec = MIXTURES["sigmoid"]
    layer, reference = CpuBackend(2).experts(spec), ReferenceBackend().experts(spec)
    early, x = numbers(1, 7, HIDDEN), numbers(2, 7, HIDDEN)
    logits = layer.route(early)
    np.testing.assert_allclose(logits, reference.route(early), rtol=0, atol=1e-5)
    found, expected = x.copy(), x.copy()
    layer.forward(x, found, None, logits)
    reference.forward(x, expected, None, logits)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["sigmoid", "shared"])
def test_selection_and_sum_apart(name: str) -> None:
    """As a hybrid model does: the sum of two parts of the selection; none at all is the shared expert's."""
    spec = replace(MIXTURES[name], post_norm=None)
    layer, reference, x = CpuBackend(2).experts(spec), ReferenceBackend().experts(spec), numbers(2, 7, HIDDEN)
    weights = layer.select(x)
    np.testing.assert_allclose(weights, reference.select(x), rtol=0, atol=1e-5)
    logits = layer.route(x)
    np.testing.assert_allclose(layer.select(x, logits), reference.select(x, logits), rtol=0, atol=1e-5)
    found, expected = np.zeros_like(x), np.zeros_like(x)
    layer.add(x, found, weights)
    layer.forward(x, expected)
    np.testing.assert_array_equal(found, expected)
    for part in (weights * (np.arange(spec.shape.count) < 2), weights * 0):
        found, expected = np.zeros_like(x), np.zeros_like(x)
        layer.add(x, found, part)
        reference.add(x, expected, part)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


SHAPES = st.builds(
    lambda groups, size, used, groups_used, gating, normalised: ExpertsConfig(
        groups * size,
        min(used, min(groups_used, groups) * size),
        32,
        gating=gating,
        normalised=normalised,
        groups=groups,
        groups_used=min(groups_used, groups),
    ),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from(Gating),
    st.booleans(),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=SHAPES, bias=st.booleans(), data=st.data())
def test_rule(shape: ExpertsConfig, bias: bool, data: st.DataObject) -> None:
    """Of few different logits, so that many are equal: the experts that `route` says, by results."""
    logits = np.array(
        [
            data.draw(st.lists(st.integers(-2, 2), min_size=shape.count, max_size=shape.count))
            for _ in range(3)
        ],
        np.float32,
    )
    spec = mixture(count=shape.count, used=shape.used, size=32, activation=Activation.RELU, gated=False)
    spec = replace(
        spec,
        shape=shape,
        selection_bias=numbers(3, shape.count).round() if bias else None,
        router=spec.router,
    )
    experts, weights = route(logits, spec.selection_bias, shape)
    assert experts.shape == weights.shape
    x = numbers(4, 3, HIDDEN)
    found, expected = x.copy(), x.copy()
    CpuBackend(1).experts(spec).forward(x, found, None, logits)
    ReferenceBackend().experts(spec).forward(x, expected, None, logits)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


TYPES = [(Q.Q4_K, Q.Q4_K, Q.Q6_K), (Q.Q4_0, Q.Q8_0, Q.F16), (Q.F32, Q.Q5_1, Q.Q8_0), (Q.Q8_0, Q.BF16, Q.Q5_0)]


def quantised(types: tuple[Q, Q, Q], **options: object) -> ExpertsSpec:
    size = 256 if types[2] in (Q.Q4_K, Q.Q5_K, Q.Q6_K) else 96
    return mixture(types, size=size, count=10, shared=size, switch=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("types", TYPES, ids=lambda types: "-".join(type.name for type in types))
def test_types(backend: CpuBackend, types: tuple[Q, Q, Q]) -> None:
    """Gate, up and down of different types; activations are rounded, as in dense layers."""
    spec = quantised(types)
    for rows in (1, 3, 40):
        x = numbers(rows, rows, HIDDEN)
        logits = ReferenceBackend().experts(spec).route(x)
        found, expected = np.zeros_like(x), np.zeros_like(x)
        backend.experts(spec).forward(x, found, None, logits)
        ReferenceBackend().experts(spec).forward(x, expected, None, logits)
        finite = np.isfinite(expected)
        assert finite.all()
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 0.02


@pytest.mark.parametrize("level", CpuBackend.levels())
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    types=st.sampled_from(TYPES),
    threads=st.sampled_from((1, 2, 3, 8, 16)),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    bias=st.booleans(),
    few=st.booleans(),
)
def test_rows_do_not_depend_on_neighbours(
    level: str, types: tuple[Q, Q, Q], threads: int, cuts: list[int], bias: bool, few: bool
) -> None:
    """To the bit: one call of all rows, other cuts, other threads, and a budget that is used up by each."""
    spec = quantised(types, bias=bias, post_norm=bias)
    x = numbers(7, sum(cuts), HIDDEN)
    expected = np.zeros_like(x)
    CpuBackend(1, level).experts(spec).forward(x, expected)
    layer = CpuBackend(threads, level, ram=1 if few else None).experts(spec)
    found = np.zeros_like(x)
    for rows in np.split(np.arange(len(x)), np.cumsum(cuts)[:-1]):
        part = found[rows]
        layer.forward(x[rows], part)
        found[rows] = part
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    alone = np.zeros_like(x)
    for row in range(0, len(x), 7):
        layer.forward(x[row : row + 1], alone[row : row + 1])
        np.testing.assert_array_equal(alone[row].view(np.uint32), expected[row].view(np.uint32))


def test_more_rows_than_are_computed_at_once() -> None:
    spec = quantised(TYPES[1])
    x = numbers(8, 1030, HIDDEN)
    found, layer = np.zeros_like(x), CpuBackend(2).experts(spec)
    layer.forward(x, found)
    for row in (0, 511, 512, 1029):
        alone = np.zeros((1, HIDDEN), np.float32)
        layer.forward(x[row : row + 1], alone)
        np.testing.assert_array_equal(found[row].view(np.uint32), alone[0].view(np.uint32))


def test_experts_are_packed_when_a_row_uses_them(tmp_path: Path) -> None:
    """And are given back, the coldest first, when the budget is used up; also from a file, which stays."""
    spec = mixture((Q.Q8_0, Q.Q8_0, Q.Q8_0), count=10, used=2)
    matrices = [spec.gate, spec.up, spec.down]
    path = tmp_path / "weights"
    path.write_bytes(b"".join(m.weight.data.tobytes() for m in matrices if m))
    mapped, start, from_file = map_file(path), 0, []
    for m in matrices:
        assert m
        data = np.frombuffer(mapped, np.uint8)[start : start + m.weight.nbytes]
        from_file.append(replace(m, weight=replace(m.weight, data=data)))
        start += m.weight.nbytes
    spec = replace(spec, gate=from_file[0], up=from_file[1], down=from_file[2])

    backend = CpuBackend(2)
    layer = backend.experts(spec)
    assert backend.packed_experts.nbytes == 0

    def use(a: int, b: int, layer: object, rows: int = 1) -> F32:
        logits = np.full((rows, 10), -9, np.float32)
        logits[:, [a, b]] = 1
        out = np.zeros((rows, HIDDEN), np.float32)
        layer.forward(numbers(5, rows, HIDDEN), out, None, logits)  # type: ignore[attr-defined]
        return out

    expected = {pair: use(*pair, layer) for pair in [(0, 1), (1, 2), (8, 9)]}
    packed = backend.packed_experts
    assert (packed.experts, packed.packs, packed.evictions) == (5, 5, 0)
    one = packed.nbytes // 5
    assert one >= sum(m.weight.nbytes for m in from_file) // 10

    small = CpuBackend(2, ram=3 * one)
    layer = small.experts(spec)
    for pair, result in expected.items():
        for _ in range(3):
            np.testing.assert_array_equal(use(*pair, layer), result)
        assert small.packed_experts.nbytes <= 3 * one
    # 0 and 1 or 2 had to go for 8 and 9: the hottest of the three, 1, stays.
    before = small.packed_experts
    assert (before.experts, before.packs, before.evictions) == (3, 5, 2)
    use(1, 8, layer)
    assert small.packed_experts == before


def test_two_layers_share_a_budget() -> None:
    spec = mixture((Q.Q8_0, Q.Q8_0, Q.Q8_0), count=10, used=2)
    other = mixture((Q.Q8_0, Q.Q4_0, Q.F16), count=10, used=2)
    free = CpuBackend(2)
    x = numbers(6, 3, HIDDEN)
    expected = [np.zeros_like(x) for _ in range(2)]
    for layer, out in zip([free.experts(spec), free.experts(other)], expected, strict=True):
        layer.forward(x, out)
    backend = CpuBackend(2, ram=free.packed_experts.nbytes // 2)
    layers = [backend.experts(spec), backend.experts(other)]
    for _ in range(3):
        for layer, out in zip(layers, expected, strict=True):
            found = np.zeros_like(x)
            layer.forward(x, found)
            np.testing.assert_array_equal(found, out)
    assert backend.packed_experts.evictions > 0
    del layers, layer
    assert backend.packed_experts.nbytes == 0


def test_not_finite() -> None:
    spec = MIXTURES["selected"]
    x = numbers(1, 2, HIDDEN)
    x[1, 3] = np.nan
    out = np.zeros_like(x)
    CpuBackend(2).experts(spec).forward(x, out)
    assert np.isfinite(out[0]).all()
    assert not np.isfinite(out[1]).any()


def test_wrong_shapes() -> None:
    backend, spec = CpuBackend(1), MIXTURES["softmax"]
    with pytest.raises(CheckpointError, match=r"^weight_30: expected shape \[6, 256, 96\]"):
        backend.experts(replace(spec, down=matrix(30, Q.F32, 5, HIDDEN, 96)))
    with pytest.raises(CheckpointError, match=r"^weight_2: expected shape \[6, 256\]"):
        backend.experts(replace(spec, router=matrix(2, Q.F32, 7, HIDDEN)))
    for shape in (replace(spec.shape, used=7), replace(spec.shape, groups=4), replace(spec.shape, groups=6)):
        with pytest.raises(CheckpointError, match=r"^weight_2: "):
            backend.experts(replace(spec, shape=shape))
    with pytest.raises(CheckpointError, match="needs a gate"):
        backend.experts(replace(spec, gate=None, activation=Activation.SWIGLU_CLAMPED))
