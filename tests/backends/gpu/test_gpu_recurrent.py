"""The GPU's recurrent layers against the reference's, and what they keep of a sequence."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.recurrent import HIDDEN, go_on, new_sequence, numbers, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.contract import StateShape
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import DeltaNetConfig, MambaConfig, Recurrent, ShortConvConfig
from hotset.core.errors import CheckpointError, HotsetError

# The interpreter is slow.
SHAPES: dict[str, Recurrent] = {
    "tiled": DeltaNetConfig(2, 4, 12, 4, tiled=True),
    "grouped": DeltaNetConfig(3, 6, 5, 2, tiled=False),
    "one head": DeltaNetConfig(1, 1, 16, 7, tiled=False),
    "mamba": MambaConfig(2, 4, 5, 12, 4),
    "convolution": ShortConvConfig(HIDDEN, 3),
    "long convolution": ShortConvConfig(HIDDEN, 9),
}


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", SHAPES)
def test_a_prompt_in_pieces(backend: Any, name: str) -> None:
    """Then token by token; number 1 of two layers."""
    spec, x = spec_of(SHAPES[name]), numbers(0, 16, HIDDEN)
    reference = ReferenceBackend()
    expected = go_on(reference, reference.recurrent(spec), x, (new_sequence(reference, spec.shape), 16))
    layer = backend.recurrent(spec, 1)
    sequence = backend.sequence(StateShape(1, 1, 32, recurrent=(spec.shape,) * 2), 16, "f16")
    pieces = np.split(x, (7, 9, 14, 15))
    assert_close(
        np.concatenate([go_on(backend, layer, rows, (sequence, len(rows))) for rows in pieces]), expected
    )


@pytest.mark.parametrize("block_rows", [128, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_several_sequences(backend: Any, name: str, block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and single rows in one call, also cut; one forked, one gone back to where it was saved."""
    monkeypatch.setattr("hotset.backends.gpu.state.BLOCK_ROWS", block_rows)
    spec, reference = spec_of(SHAPES[name]), ReferenceBackend()
    both = [(backend, backend.recurrent(spec)), (reference, reference.recurrent(spec))]
    all_sequences = [[new_sequence(at, spec.shape) for _ in range(3)] for at, _ in both]
    for turn, counts in enumerate(((4, 1, 2), (1, 5, 1), (2, 1, 1))):
        x = numbers(turn, sum(counts), HIDDEN)
        found, expected = (
            go_on(at, layer, x, *zip(sequences, counts, strict=True))
            for (at, layer), sequences in zip(both, all_sequences, strict=True)
        )
        assert_close(found, expected)
        for sequences in all_sequences:
            assert sequences[0].length == (4, 5, 6)[turn]
            if turn == 0:
                assert sequences[0].save()
                assert not sequences[0].save()
                sequences[2] = sequences[2].fork()
            elif turn == 1:
                assert sequences[0].reusable(4) == 4
                sequences[0].rewind(4)
                assert sequences[1].reusable(0) == 0
                sequences[1].rewind(0)


def test_computed_again(backend: Any) -> None:
    """What was computed, but not advanced, leaves nothing behind."""
    spec, x = spec_of(SHAPES["grouped"]), numbers(0, 6, HIDDEN)
    layer, sequence = backend.recurrent(spec), new_sequence(backend, spec.shape)
    go_on(backend, layer, x[:3], (sequence, 3))
    there = backend.gpu.upload(-x[3:])
    layer.forward(there, there, backend.view(Batch(np.zeros(3, np.int32), (Span(sequence, 3),))))
    found = go_on(backend, layer, x[3:], (sequence, 3))
    reference = ReferenceBackend()
    expected = go_on(reference, reference.recurrent(spec), x, (new_sequence(reference, spec.shape), 6))
    assert_close(found, expected[3:])


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("read", "again", "save", "rewind", "undo", "fork", "limit", "forget")),
            st.integers(1, 9),
        ),
        max_size=40,
    )
)
@settings(max_examples=200, deadline=None)
def test_states(steps: list[tuple[str, int]]) -> None:
    """Whatever was saved, gone back to or forked, a state is read that was written after the same tokens.

    A state is one number here, in place of what kernels write.
    """
    from hotset.backends.gpu.device import Gpu
    from hotset.backends.gpu.state import GpuSequence

    shape = StateShape(0, 1, 1, recurrent=(DeltaNetConfig(1, 1, 1, 1, True),))
    sequences: list[tuple[GpuSequence, list[int]]] = [(GpuSequence.empty(Gpu("cpu"), shape, 500, "f32"), [])]

    def state(text: list[int]) -> float:
        return float(hash(tuple(text)) % 65521)

    def compute(sequence: GpuSequence, text: list[int], new: list[int]) -> None:
        read, write = sequence.states.addresses(sequence.length)
        assert (read == 0) == (not text)
        if text:
            assert ctypes.c_float.from_address(read).value == state(text)
        ctypes.c_float.from_address(write).value = state(text + new)

    for turn, (step, size) in enumerate(steps):
        sequence, text = sequences[size % len(sequences)]
        if step in ("read", "again"):
            if step == "again":
                compute(sequence, text, [-1])
            compute(sequence, text, [turn] * size)
            sequence.advance(size)
            text += [turn] * size
        elif step == "save":
            assert sequence.save() or sequence.length == 0 or sequence.length in sequence.states._saved
            assert sequence.length == 0 or sequence.saved_bytes > 0
        elif step == "fork" and len(sequences) < 4:
            sequences.append((sequence.fork(), list(text)))
        elif step == "limit":
            sequence.limit_saved(size * 2)
            assert sequence.saved_bytes <= size * 2
        elif step == "forget":
            sequence.forget(size)
        elif step in ("rewind", "undo"):
            length = sequence.reusable(max(0, len(text) - (1 if step == "undo" else 3 * size)))
            assert length <= len(text)
            sequence.rewind(length)
            del text[length:]
        assert sequence.length == len(text)
        assert sequence.reusable(500) == len(text)


def test_saved_states() -> None:
    """The nearest to others go first; the last advance can be undone; nothing else that was not saved."""
    from hotset.backends.gpu.device import Gpu
    from hotset.backends.gpu.state import GpuSequence

    shape = StateShape(0, 1, 1, recurrent=(DeltaNetConfig(1, 1, 1, 1, True),))
    sequence = GpuSequence.empty(Gpu("cpu"), shape, 500, "q8_0")
    assert not sequence.save()
    each = 4 * shape.recurrent[0].state_size
    for count in (100, 50, 100, 100):
        sequence.states.addresses(sequence.length)
        sequence.advance(count)
        assert sequence.save()
    assert (sequence.saved_bytes, sequence.undoable) == (4 * each, 0)
    sequence.limit_saved(3 * each)
    assert sorted(sequence.states._saved) == [150, 250, 350]
    sequence.states.addresses(350)
    sequence.advance(5)
    sequence.states.addresses(355)
    sequence.advance(5)
    assert [sequence.reusable(at) for at in (360, 359, 355, 354, 149)] == [360, 355, 355, 350, 0]
    sequence.rewind(355)
    with pytest.raises(ValueError, match="no state to go back to at 354"):
        sequence.rewind(354)
    sequence.limit_saved(0)
    assert sequence.reusable(354) == 0


def test_what_is_refused(backend: Any) -> None:
    spec = spec_of(SHAPES["tiled"])
    with pytest.raises(CheckpointError, match=r"convolution: expected shape \[96, 4\], found \[96, 3\]"):
        backend.recurrent(replace(spec, conv=spec.conv[:, 1:]))
    shapes = (SHAPES["tiled"], SHAPES["grouped"])
    with pytest.raises(HotsetError, match="recurrent layers of different shapes"):
        backend.sequence(StateShape(0, 1, 32, recurrent=shapes), 8, "f16")
