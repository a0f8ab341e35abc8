"""The engine over a small model most of whose layers cannot go back: what it saves, where others begin."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.random_checkpoint import random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.config import Activation, DeltaNetConfig, LayerConfig, LayerPlacement, Placement
from hotset.model.build import build_transformer
from hotset.serve.engine import Engine
from hotset.serve.loaded import Model
from hotset.serve.request import Request, Token
from hotset.serve.room import make_pool
from hotset.serve.sampler import Sampling
from hotset.state.kv_types import kv_cache_bytes, state_bytes

NET = DeltaNetConfig(2, 4, 8, 4, tiled=True)
CONTEXT = 800


@cache
def made(backend: str) -> Any:
    layers = (LayerConfig(None, recurrent=NET), LayerConfig(None), LayerConfig(None, recurrent=NET))
    checkpoint = random_checkpoint(layers=layers, activation=Activation.SILU, context_length=CONTEXT)
    return build_transformer(checkpoint, ReferenceBackend() if backend == "reference" else CpuBackend(1))


@pytest.fixture(params=["reference", "cpu"])
def model(request: pytest.FixtureRequest, tokenizer: Any) -> Model:
    transformer = made(request.param)
    return Model(Path("random.gguf"), transformer, tokenizer, transformer.backend, 0)


def ids(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 53, count).tolist())


def answer(engine: Engine, prompt: tuple[int, ...], tokens: int = 6) -> tuple[list[Token], int]:
    """The answer's tokens, and how many of the prompt's were not computed."""
    stream = engine.submit(Request(prompt, tokens, Sampling(logprobs=0)))
    return list(stream), stream.cached_tokens


def same(found: list[Token], expected: list[Token]) -> None:
    assert [token.id for token in found] == [token.id for token in expected]
    for token, other in zip(found, expected, strict=True):
        assert token.logprobs and other.logprobs
        assert token.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-4)


def test_second_turn(model: Model) -> None:
    """It begins at the end of the first, or near its prompt's end where the answer is told otherwise."""
    engine = Engine(model, context=CONTEXT, kv_type="f32")
    prompt = ids(0, 700)
    tokens, cached = answer(engine, prompt)
    assert cached == 0
    said = tuple(token.id for token in tokens)
    whole = prompt + said + ids(1, 30)
    edited = prompt[:-2] + ids(2, 40)
    for turn, least in (
        (whole, len(prompt) + 5),
        (edited, len(prompt) - 32),
        (prompt[:600] + ids(3, 9), 512),
    ):
        found, cached = answer(engine, turn)
        assert cached >= least
        same(found, answer(Engine(model, context=CONTEXT, kv_type="f32"), turn)[0])


@given(texts=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200)), min_size=2, max_size=6))
@settings(max_examples=8, deadline=None)
def test_any_prefixes(texts: list[tuple[int, int]], tokenizer: Any) -> None:
    """Whatever prompts share, each has the answer that it has alone."""
    transformer = made("cpu")
    model = Model(Path("random.gguf"), transformer, tokenizer, transformer.backend, 0)
    engine = Engine(model, context=CONTEXT, kv_type="f32", parallel=2)
    for turn, (common, own) in enumerate(texts):
        prompt = ids(0, common) + ids(turn + 1, own)
        same(answer(engine, prompt)[0], answer(Engine(model, context=CONTEXT, kv_type="f32"), prompt)[0])


def test_size_of_a_state() -> None:
    sequence = made("cpu").sequence(CONTEXT, "f32")
    made("cpu").forward(Batch.of(sequence, np.array(ids(0, 20), np.int32)))
    sequence.save()
    assert sequence.saved_bytes == state_bytes(made("cpu").config)


def test_states_on_a_gpu_are_smaller(model: Model) -> None:
    """So that no more are saved there than its plan has room for."""
    config = model.config
    layers = tuple(LayerPlacement(True, 0) for _ in config.layers)
    plan: Any = SimpleNamespace(placement=Placement(layers, False))
    pool = make_pool(replace(model, plan=plan), CONTEXT, "f32", 1, None)
    state = 4 * sum(layer.recurrent.state_size for layer in config.layers if layer.recurrent)
    assert pool._saved_room == 6 * state < 6 * state_bytes(config)
    assert pool.room == kv_cache_bytes(config, CONTEXT, "f32") + (2 + 6) * state


def test_saved_states_have_room(model: Model) -> None:
    """With room for one sequence and nothing more, nothing stays saved, and answers come all the same."""
    whole = kv_cache_bytes(model.config, CONTEXT, "f32") + 2 * state_bytes(model.config)
    engine = Engine(model, context=CONTEXT, kv_type="f32", kv_room=whole)
    prompt = ids(0, 700)
    found, _ = answer(engine, prompt)
    assert engine._pool.bytes <= whole
    same(found, answer(Engine(model, context=CONTEXT, kv_type="f32"), prompt)[0])


def test_an_answer_that_grows_needs_the_room_of_saved_states(model: Model) -> None:
    """They are saved where the answer is short, and go when nothing else has room for more of it."""
    whole = kv_cache_bytes(model.config, CONTEXT, "f32") + 2 * state_bytes(model.config)
    engine = Engine(model, context=CONTEXT, kv_type="f32", kv_room=whole)
    prompt = ids(0, 100)
    found, _ = answer(engine, prompt, tokens=600)
    assert len(found) == 600
    assert engine._pool.bytes <= whole
    same(found, answer(Engine(model, context=CONTEXT, kv_type="f32"), prompt, tokens=600)[0])


def test_nothing_is_appended_in_pieces(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of several pieces that fails in a later one leaves the sequence as it was."""
    transformer = model.transformer
    tokens = np.array(ids(0, 700), np.int32)
    sequence, other = (transformer.sequence(CONTEXT, "f32") for _ in range(2))
    transformer.forward(Batch.of(sequence, tokens[:50]))
    forward, calls = type(transformer.head).forward, []

    def failing(head: Any, x: Any) -> Any:
        calls.append(len(x))
        raise RuntimeError("no")

    monkeypatch.setattr(type(transformer.head), "forward", failing)
    with pytest.raises(RuntimeError, match="no"):
        transformer.forward(Batch.of(sequence, tokens[50:650]))
    monkeypatch.setattr(type(transformer.head), "forward", forward)
    assert sequence.length == 50
    assert sequence.saved_bytes == 0
    expected = transformer.forward(Batch.of(other, tokens[:650]))
    np.testing.assert_allclose(
        transformer.forward(Batch.of(sequence, tokens[50:650])),
        expected,
        rtol=0,
        atol=1e-4 * abs(expected).max(),
    )
