"""The CPU's recurrent layers: the reference's numbers, and the same bits in any cut of a prompt."""

import numpy as np
import pytest
from helpers.recurrent import HIDDEN, POSITIONS, SHAPES, go_on, new_sequence, numbers, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.contract import F32
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Sequence


@pytest.fixture(scope="module", params=CpuBackend.levels())
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_same_bits(found: F32, expected: F32) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", SHAPES)
def test_reference(level: str, name: str) -> None:
    spec, x = spec_of(SHAPES[name]), numbers(0, POSITIONS, HIDDEN)
    found, expected = (
        go_on(backend, backend.recurrent(spec), x, (new_sequence(backend, spec.shape), len(x)))
        for backend in (CpuBackend(2, level), ReferenceBackend())
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@given(
    cuts=st.lists(st.sampled_from((1, 2, 3, 7, 15, 16, 17, 33)), max_size=20),
    threads=st.sampled_from((1, 2, 5)),
    neighbours=st.booleans(),
    name=st.sampled_from(sorted(SHAPES)),
)
@settings(max_examples=16, deadline=None)
def test_any_cut(level: str, cuts: list[int], threads: int, neighbours: bool, name: str) -> None:
    """Alone or beside another sequence's rows, with any number of threads."""
    spec, x = spec_of(SHAPES[name], quantised=True), numbers(0, POSITIONS, HIDDEN)
    whole = CpuBackend(1, level)
    expected = go_on(whole, whole.recurrent(spec), x, (new_sequence(whole, spec.shape), len(x)))
    backend = CpuBackend(threads, level)
    layer = backend.recurrent(spec)
    sequence, other = new_sequence(backend, spec.shape), new_sequence(backend, spec.shape)
    found = []
    for rows in np.split(np.arange(len(x)), np.unique(np.minimum(np.cumsum([0, *cuts]), len(x)))):
        if len(rows) and neighbours and other.length < 60:
            both = np.concatenate([numbers(3, 5, HIDDEN), x[rows]])
            found.append(go_on(backend, layer, both, (other, 5), (sequence, len(rows)))[5:])
        elif len(rows):
            found.append(go_on(backend, layer, x[rows], (sequence, len(rows))))
    assert_same_bits(np.concatenate(found), expected)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("read", "save", "rewind", "fork", "again", "limit")), st.integers(1, 40)),
        max_size=25,
    ),
    name=st.sampled_from(("tiled", "convolution", "long convolution", "mamba")),
)
@settings(max_examples=60, deadline=None)
def test_going_back(steps: list[tuple[str, int]], name: str) -> None:
    """Whatever was saved, gone back to or forked, the next rows are those of a fresh start."""
    spec = spec_of(SHAPES[name], quantised=True)
    backend = CpuBackend(1)
    layer = backend.recurrent(spec)
    x = numbers(0, 2, POSITIONS, HIDDEN)  # two texts, that sequences change between
    sequences: list[tuple[Sequence, list[int]]] = [(new_sequence(backend, spec.shape), [])]

    def rows(text: list[int]) -> F32:
        return np.array([x[kind, at] for at, kind in enumerate(text)], np.float32).reshape(-1, HIDDEN)

    for turn, (step, size) in enumerate(steps):
        sequence, text = sequences[turn % len(sequences)]
        assert sequence.length == len(text)
        if step == "save":
            if sequence.save() and size % 5 == 0:
                sequence.forget(len(text))
            assert sequence.reusable(len(text)) == len(text)
        elif step == "limit":
            sequence.limit_saved(size * 1000)
            assert sequence.saved_bytes <= size * 1000
        elif step == "rewind":
            length = sequence.reusable(max(0, len(text) - size))
            assert length <= max(0, len(text) - size)
            sequence.rewind(length)
            del text[length:]
        elif step == "fork" and len(sequences) < 3:
            sequences.append((sequence.fork(), list(text)))
        else:
            count = min(size, POSITIONS - len(text))
            new = text + [turn % 2] * count
            if count:
                fresh = new_sequence(backend, spec.shape)
                expected = go_on(backend, layer, rows(new), (fresh, len(new)))[len(text) :]
                if step == "again":  # computed, but not advanced, then computed again
                    view = backend.view(Batch.of(sequence, np.zeros(count, np.int32)))
                    layer.forward(-rows(new)[len(text) :], np.zeros((count, HIDDEN), np.float32), view)
                assert_same_bits(go_on(backend, layer, rows(new)[len(text) :], (sequence, count)), expected)
                text[:] = new


def test_saved_lengths() -> None:
    """A saved length can be come back to from far; without one, what is left is the beginning."""
    spec = spec_of(SHAPES["tiled"])
    backend = CpuBackend(1)
    layer, sequence = backend.recurrent(spec), new_sequence(backend, spec.shape)
    go_on(backend, layer, numbers(0, 40, HIDDEN), (sequence, 40))
    sequence.save()
    size = sequence.saved_bytes
    assert size > 0
    go_on(backend, layer, numbers(1, 40, HIDDEN), (sequence, 40))
    assert sequence.saved_bytes == size
    found = [sequence.reusable(at) for at in (99, 80, 79, 70, 40, 39, 32, 31, 5)]
    assert found == [80, 80, 40, 40, 40, 39, 32, 0, 0]
    with pytest.raises(ValueError, match="go back to"):
        sequence.rewind(45)
    sequence.rewind(40)
    assert sequence.length == 40
    sequence.rewind(0)
    assert sequence.reusable(80) == 0
