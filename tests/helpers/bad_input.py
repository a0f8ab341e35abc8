"""Damage to model files, and what must come of opening them."""

import struct
import tracemalloc
import warnings
from collections.abc import Callable
from math import prod
from pathlib import Path
from time import process_time
from typing import Any

import gguf  # noqa: F401 - not to be counted when an error message needs it
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError, HotsetError, RequestError
from hotset.formats import Overrides, open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.model.build import build_transformer

MOST_BYTES = 2 << 20  # a thousand times the files
MOST_SECONDS = 2.0
CPU = CpuBackend(1)


def of_families(argument: str, everyday: tuple[Any, int], **thorough: tuple[Any, int]) -> Any:
    """Parameters `argument` and `examples`: so many cases every day, others by name in the slow run."""
    slow = [pytest.param(*case, marks=pytest.mark.slow, id=name) for name, case in thorough.items()]
    return pytest.mark.parametrize(f"{argument}, examples", [pytest.param(*everyday, id="everyday"), *slow])


def assert_runs_or_refuses(path: Path, overrides: Overrides | None = None) -> None:
    """Open a model and compute two tokens: it works, or there is an error of one line.

    Opening it takes neither long nor much memory.
    """
    checkpoint = _opened(path, overrides)
    if checkpoint is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _run(checkpoint)
    except HotsetError as error:
        assert_one_line(error)


def _run(checkpoint: Checkpoint) -> None:
    model = build_transformer(checkpoint, CPU)
    logits = model.forward(Batch.of(model.sequence(2, "f32"), np.zeros(2, np.int32), logits=None))
    assert logits.shape == (2, checkpoint.config.vocab_size)


def assert_one_line(error: HotsetError) -> None:
    """Something that can be shown as it is."""
    assert str(error)
    assert str(error).isprintable()


def _opened(path: Path, overrides: Overrides | None) -> Checkpoint | None:
    start, checkpoint = process_time(), None
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            checkpoint = open_checkpoint(path, overrides)
            for tensor in checkpoint.tensors.values():
                assert tensor.nbytes == prod(tensor.shape) // tensor.type.block_size * tensor.type.block_bytes
            for key in checkpoint.metadata:
                checkpoint.metadata[key]
            layer = checkpoint.config.layers[-1]
            assert layer.rope is None or np.isfinite(layer.rope.inverse_frequencies).all()
    except (CheckpointError, RequestError) as error:
        checkpoint = None
        assert_one_line(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert process_time() - start < MOST_SECONDS
    return checkpoint


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Any) -> None:
        check(case)

    run()


# Mutations of bytes.

NUMBERS = st.sampled_from(
    [0, 1, 2, 7, 8, 9, 31, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
)
PLACES = st.integers(0, 1 << 16)


def set_bytes(place: int, raw: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[: place % len(data)] + raw + data[place % len(data) + len(raw) :]


def move(start: int, length: int, target: int) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        begin = start % len(data)
        piece, rest = data[begin : begin + length], data[:begin] + data[begin + length :]
        at = target % (len(rest) + 1)
        return rest[:at] + piece + rest[at:]

    return apply


def repeat(start: int, length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: start % len(data) + length] + data[start % len(data) :]


def cut(start: int, length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: start % len(data)] + data[start % len(data) + length :]


MUTATION = st.one_of(
    st.builds(set_bytes, PLACES, st.binary(min_size=1, max_size=9)),
    st.builds(lambda place, n: set_bytes(place, struct.pack("<Q", n)), PLACES, NUMBERS),
    st.builds(lambda place, n: set_bytes(place, struct.pack("<I", n % 2**32)), PLACES, NUMBERS),
    st.builds(move, PLACES, st.integers(1, 200), PLACES),
    st.builds(repeat, PLACES, st.integers(1, 200)),
    st.builds(cut, PLACES, st.integers(1, 5000)),
)
MUTATIONS = st.lists(MUTATION, min_size=1, max_size=3)


def mutated(data: bytes, mutations: list[Callable[[bytes], bytes]]) -> bytes:
    for mutation in mutations:
        data = mutation(data or b"\0")
    return data


# Odd values.

WEIRD = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.integers(-2, 40),
    st.floats(width=32),
    st.sampled_from(["", "x" * 300, "llama", "linear", "yarn", "relu", "drelu", "a\nb", "\x1b[2J"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.just(["a", "b"]),
)
JSON = st.one_of(
    WEIRD, st.just(10**400), st.just([]), st.just({}), st.just({"a": [1]}), st.just(["full_attention"])
)
