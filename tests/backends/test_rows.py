"""A row does not depend on its neighbours: equal to the bit, however sequences are cut into calls."""

import numpy as np
import pytest
from helpers import parts
from helpers.parts import attention_state
from helpers.random_tensors import random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cpu_neurons import TYPES as NEURON_TYPES
from test_cpu_neurons import ffn as neuron_spec

from hotset.backends.blocks import round_to_nearest
from hotset.backends.contract import F32, AttentionSpec, HeadSpec, Linear, Norm, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.backends.maths import normalise
from hotset.core.batch import Batch, Span, Work
from hotset.core.config import Activation, FFNPlan, NormKind, RopeConfig, Score, Way
from hotset.core.heads import QueryGrowth
from hotset.formats.tensor import TensorType, tensor_from_array

HIDDEN = 64
POSITIONS = 400
THREADS = (1, 2, 3, 8, 16)
TYPES = (TensorType.Q4_0, TensorType.Q8_0, TensorType.F16, TensorType.F32)


def numbers(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(seed: int, type: TensorType, rows: int, cols: int) -> Linear:
    weight = numbers(seed, rows, cols) / np.float32(cols**0.5)
    if type in (TensorType.F16, TensorType.F32) or cols % 32:
        return Linear(
            tensor_from_array(
                f"weight_{seed}", weight.astype(np.float16 if type is TensorType.F16 else np.float32)
            )
        )
    return Linear(round_to_nearest(f"weight_{seed}", weight, type, 1))


def assert_same_bits(found: F32, expected: F32) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


# Heads and key-value heads, a head's size, window, type of keys and values.
ATTENTIONS = [
    ((4, 2), 32, None, "f16"),
    ((7, 1), 64, 100, "q8_0"),
    ((3, 3), 24, None, "f32"),
    ((71, 1), 16, 300, "f16"),
    ((32, 4), 32, 37, "q8_0"),
    ((2, 1), 20, 1, "f16"),
]


def attention_spec(index: int, type: TensorType) -> AttentionSpec:
    (n_heads, n_kv_heads), dim, window, _ = ATTENTIONS[index]
    frequencies = tuple(10000.0 ** (-2 * i / dim) for i in range(dim // 2))
    return AttentionSpec(
        norm=Norm(NormKind.RMS, 1e-5, np.ones(HIDDEN, np.float32)),
        q=linear(1, type, n_heads * dim, HIDDEN),
        k=linear(2, type, n_kv_heads * dim, HIDDEN),
        v=linear(3, type, n_kv_heads * dim, HIDDEN),
        output=linear(4, type, HIDDEN, n_heads * dim),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim,
        scale=dim**-0.5,
        window=window,
        rope=RopeConfig(dim, False, frequencies, 1.0),
        v_norm=Norm(NormKind.RMS, 1e-5, np.ones(dim, np.float32)) if index % 3 == 1 else None,
        head_gate=linear(9, type, n_heads, HIDDEN) if index % 3 == 2 else None,
        soft_cap=1.5 if index % 2 else 0.0,
        growth=QueryGrowth(0.3, 50) if index % 2 else None,
    )


def attend(backend: CpuBackend, spec: AttentionSpec, kv_type: str, x: F32, cuts: list[int]) -> F32:
    """The attention of x (T, D), cut into calls of so many rows and one of the rest."""
    sequence = attention_state(backend, spec, len(x), kv_type)
    layer, out = backend.attention(spec), x.copy()
    for rows in np.split(np.arange(len(x)), np.cumsum(cuts)):
        part = out[rows]
        if len(part):
            parts.attend(backend, layer, part, part, sequence)
            out[rows] = part
    return out


def test_numpy_norms() -> None:
    """What layers of several parts are normalised with between them."""
    x, norm = numbers(6, 33, 2816), Norm(NormKind.RMS, 1e-6, numbers(7, 2816))
    alone = np.concatenate([normalise(x[i : i + 1], norm) for i in range(len(x))])
    assert_same_bits(alone, normalise(x, norm))


@pytest.mark.parametrize("level", CpuBackend.levels())
@pytest.mark.parametrize("index", range(len(ATTENTIONS)))
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    type=st.sampled_from(TYPES),
    threads=st.sampled_from(THREADS),
    cuts=st.lists(st.one_of(st.integers(1, 3), st.integers(1, 200)), max_size=20),
)
def test_attention(level: str, index: int, type: TensorType, threads: int, cuts: list[int]) -> None:
    spec, kv_type, x = attention_spec(index, type), ATTENTIONS[index][3], numbers(5, POSITIONS, HIDDEN)
    expected = attend(CpuBackend(1, level), spec, kv_type, x, [])
    assert_same_bits(attend(CpuBackend(threads, level), spec, kv_type, x, cuts), expected)


@pytest.mark.parametrize("level", CpuBackend.levels())
@pytest.mark.parametrize("type", TYPES)
def test_attention_row_by_row(level: str, type: TensorType) -> None:
    spec, x = attention_spec(0, type), numbers(6, 300, HIDDEN)
    expected = attend(CpuBackend(2, level), spec, "f16", x, [])
    assert_same_bits(attend(CpuBackend(2, level), spec, "f16", x, [1] * 299), expected)


@pytest.mark.parametrize("level", CpuBackend.levels())
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    index=st.integers(0, len(ATTENTIONS) - 1),
    type=st.sampled_from(TYPES),
    threads=st.sampled_from(THREADS),
    steps=st.lists(st.lists(st.sampled_from([0, 1, 1, 1, 5, 90]), min_size=4, max_size=4), max_size=5),
)
def test_attention_of_several_sequences(
    level: str, index: int, type: TensorType, threads: int, steps: list[list[int]]
) -> None:
    """Four sequences, of each so many rows in every call, as each alone; one goes on from a fork."""
    spec, kv_type = attention_spec(index, type), ATTENTIONS[index][3]
    counts = [sum(rows) for rows in zip(*steps, strict=True)]
    xs = [numbers(10 + i, POSITIONS, HIDDEN) for i in range(4)]
    alone = [attend(CpuBackend(1, level), spec, kv_type, x, []) for x in xs]

    backend = CpuBackend(threads, level)
    layer = backend.attention(spec)
    sequences = [attention_state(backend, spec, POSITIONS, kv_type) for _ in range(4)]
    done = [0] * 4
    for rows in steps:
        spans = [(i, n) for i, n in enumerate(rows) if n]
        if not spans:
            continue
        x = np.concatenate([xs[i][done[i] : done[i] + n] for i, n in spans])
        batch = Batch(np.zeros(len(x), np.int32), tuple(Span(sequences[i], n) for i, n in spans))
        layer.forward(x, x, backend.view(batch))
        for (i, n), part in zip(spans, np.split(x, np.cumsum([n for _, n in spans])[:-1]), strict=True):
            assert_same_bits(part, alone[i][done[i] : done[i] + n])
            sequences[i].advance(n)
            done[i] += n
        sequences[0] = sequences[0].fork()
        sequences[1].rewind(sequences[1].length - rows[1])
        sequences[1].advance(rows[1])
    assert done == (counts or [0] * 4)


WAYS = [
    FFNPlan(Way.DENSE),
    FFNPlan(Way.EXACT),
    FFNPlan(Way.THRESHOLD, Score.GATE, 0.3),
    FFNPlan(Way.THRESHOLD, Score.DOWN, 2.0),
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, 0.1, kept=0.9),
    FFNPlan(Way.PREDICTOR, Score.GATE_Q2, -0.2),
]


@pytest.mark.parametrize("plan", WAYS, ids=lambda p: f"{p.way.value}-{p.score.value if p.score else ''}")
@pytest.mark.parametrize("level", CpuBackend.levels())
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    type=st.sampled_from(NEURON_TYPES),
    function=st.sampled_from([(Activation.RELU, True), (Activation.DRELU, True), (Activation.RELU2, False)]),
    threads=st.sampled_from(THREADS),
    lossless=st.lists(st.booleans(), min_size=1, max_size=40),
    odd=st.booleans(),
)
def test_neuron_ffn(
    level: str,
    plan: FFNPlan,
    type: TensorType,
    function: tuple[Activation, bool],
    threads: int,
    lossless: list[bool],
    odd: bool,
) -> None:
    """Rows of their own sequences, lossless and not, together and each alone; then with equal cut-offs."""
    activation, gated = function
    spec = neuron_spec(
        type, hidden=160, size=333, activation=activation, gated=gated, plan=plan, bias=odd, post_norm=odd
    )
    x = numbers(7, len(lossless), 160)
    shape = StateShape(1, 1, 32, (plan.cutoff,))

    def compute(backend: CpuBackend, together: bool) -> tuple[F32, list[tuple[float, Work]]]:
        layer, out = backend.neuron_ffn(spec), x.copy()
        sequences = [backend.sequence(shape, 8, "f16") for _ in lossless]
        spans = [Span(sequence, 1, kind) for sequence, kind in zip(sequences, lossless, strict=True)]
        rows = [slice(0, len(x))] if together else [slice(i, i + 1) for i in range(len(x))]
        for part in rows:
            batch = Batch(np.zeros(part.stop - part.start, np.int32), tuple(spans[part]))
            layer.forward(out[part], out[part], backend.view(batch))
        choosers = [sequence.choosers[0] for sequence in sequences]
        return out, [(chooser.cutoff, chooser.work) for chooser in choosers if chooser]

    expected, states = compute(CpuBackend(1, level), together=False)
    found, found_states = compute(CpuBackend(threads, level), together=True)
    assert_same_bits(found, expected)
    assert found_states == states
    assert np.abs(found - x).max() > 0


@pytest.mark.parametrize("level", CpuBackend.levels())
@pytest.mark.parametrize("type", list(TensorType))
def test_matrices(level: str, type: TensorType) -> None:
    """Any number of rows of x, of every type, with rows of the matrix that fill no panel."""
    x = numbers(8, 23, 512)
    norm = Norm(NormKind.RMS, 1e-5, np.ones(512, np.float32))
    head = CpuBackend(2, level).head(HeadSpec(norm, Linear(random_tensor(type, 37, 512))))
    expected = np.concatenate([head.forward(x[i : i + 1]) for i in range(len(x))])
    for rows in range(2, len(x) + 1):
        assert_same_bits(head.forward(x[:rows]), expected[:rows])
