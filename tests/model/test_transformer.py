import numpy as np
import pytest
from helpers.parity import assert_close
from helpers.random_checkpoint import random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.building import Backend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.errors import HotsetError, RequestError
from hotset.model import transformer
from hotset.model.build import build_transformer

CAPACITY = 32
TOKENS = np.random.default_rng(2).integers(0, 53, CAPACITY).astype(np.int32)


@pytest.mark.parametrize("parallel", [False, True])
def test_any_way_to_the_same_position(parallel: bool, backend: Backend) -> None:
    """However the tokens are cut, and however often the sequence is set back, the logits are the same."""
    model = build_transformer(random_checkpoint(parallel=parallel), backend)
    expected = model.forward(Batch.of(model.sequence(CAPACITY, "f32"), TOKENS, logits=None))
    steps = st.lists(st.tuples(st.integers(1, CAPACITY), st.integers(0, CAPACITY)), min_size=1, max_size=6)

    @settings(max_examples=25, deadline=None)
    @given(steps)
    def check(steps: list[tuple[int, int]]) -> None:
        kv = model.sequence(CAPACITY, "f32")
        for count, back in steps:
            kv.rewind(min(back, kv.length))
            start, stop = kv.length, min(kv.length + count, CAPACITY)
            if start < stop:
                assert_close(model.forward(Batch.of(kv, TOKENS[start:stop])), expected[stop - 1 : stop])
                assert kv.length == stop

    check()


def test_long_prompts_are_sliced(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_transformer(random_checkpoint(), backend)
    expected = model.forward(Batch.of(model.sequence(CAPACITY, "f32"), TOKENS, logits=None))
    monkeypatch.setattr(transformer, "SLICE", 7)
    for all_logits in (True, False):
        kv = model.sequence(CAPACITY, "f32")
        logits = model.forward(Batch.of(kv, TOKENS, logits=None if all_logits else 1))
        assert_close(logits, expected if all_logits else expected[-1:])
        assert kv.length == CAPACITY


def test_no_room(backend: Backend) -> None:
    model = build_transformer(random_checkpoint(), backend)
    kv = model.sequence(8, "f32")
    model.forward(Batch.of(kv, TOKENS[:5]))
    with pytest.raises(RequestError, match=r"4 tokens to append to 5: expected 1 to 3, as the context has 8"):
        model.forward(Batch.of(kv, TOKENS[:4]))
    with pytest.raises(RequestError, match="0 tokens"):
        model.forward(Batch.of(kv, TOKENS[:0]))
    assert kv.length == 5
    model.forward(Batch.of(kv, TOKENS[:3]))  # exactly full


def test_sequences_do_not_mix(backend: Backend) -> None:
    """Two sequences in turn on one model."""
    model = build_transformer(random_checkpoint(), backend)
    one, other = model.sequence(CAPACITY, "f32"), model.sequence(CAPACITY, "f32")
    expected = model.forward(Batch.of(model.sequence(CAPACITY, "f32"), TOKENS[:8]))
    model.forward(Batch.of(one, TOKENS[:7]))
    model.forward(Batch.of(other, TOKENS[9:19]))
    assert_close(model.forward(Batch.of(one, TOKENS[7:8])), expected)


@pytest.mark.parametrize(("type", "tolerance"), [("f16", 2e-3), ("q8_0", 5e-2)])
def test_small_kv_cache(type: str, tolerance: float, backend: Backend) -> None:
    """Keys and values in fewer bits: near the same logits, but not the same."""
    if backend.name == "reference" and type == "q8_0":
        pytest.skip("the reference backend has no such cache")
    model = build_transformer(random_checkpoint(head_dim=32), backend)
    expected = model.forward(Batch.of(model.sequence(CAPACITY, "f32"), TOKENS, logits=None))
    kv = model.sequence(CAPACITY, type)
    first, rest = (model.forward(Batch.of(kv, part, logits=None)) for part in (TOKENS[:9], TOKENS[9:]))
    found = np.concatenate([first, rest])
    assert_close(found, expected, tolerance)
    assert not np.array_equal(found, expected)


def test_progress(backend: Backend) -> None:
    seen: list[tuple[int, int]] = []
    build_transformer(random_checkpoint(), backend, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_reference_refuses_q8_0_cache() -> None:
    model = build_transformer(random_checkpoint(), ReferenceBackend())
    with pytest.raises(HotsetError, match="q8_0"):
        model.sequence(8, "q8_0")
