"""Arguments of the API: every one of a wrong type is a `RequestError` in one line."""

from pathlib import Path

import numpy as np
import pytest

from hotset.core.errors import RequestError
from hotset.model.finite import NotFiniteError
from hotset.serve.engine import Engine
from hotset.serve.request import Request
from hotset.serve.sampler import Sampling

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (5, {}),
        (None, {}),
        (b"bytes", {}),
        ({"a": 1}, {}),
        ([1.5], {}),
        (["1"], {}),
        ([[1, 2]], {}),
        ([True], {}),
        (np.ones((2, 2), np.int32), {}),
        (np.ones(2), {}),
        ("hi", {"max_tokens": "5"}),
        ("hi", {"max_tokens": 1.5}),
        ("hi", {"max_tokens": True}),
        ("hi", {"max_tokens": 0}),
        ("hi", {"sampling": None}),
        ("hi", {"sampling": {"temperature": 1}}),
        ("hi", {"stop": 5}),
        ("hi", {"stop": [5]}),
        ("hi", {"stop": None}),
        ("hi", {"stop": b"x"}),
    ],
)
def test_generate(make_engine, prompt, options):
    with (
        make_engine() as engine,
        pytest.raises(RequestError, match="(?i)(prompt|max_tokens|sampling|stop)") as e,
    ):
        engine.generate(prompt, **options)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ("hi", {}),
        (None, {}),
        (5, {}),
        (["hi"], {}),
        ([{"content": "hi"}], {}),
        ([{"role": 1, "content": "hi"}], {}),
        ([{"role": "user", "content": 5}], {}),
        ({"role": "user", "content": "hi"}, {}),
        (USER, {"tools": "search"}),
        (USER, {"tools": [5]}),
        (USER, {"template_variables": ["x"]}),
        (USER, {"template_variables": {1: 2}}),
        (USER, {"max_tokens": "5"}),
    ],
)
def test_chat(make_engine, messages, options):
    with make_engine() as engine, pytest.raises(RequestError) as caught:
        engine.chat(messages, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model", 5),
        ("model", b"m.gguf"),
        ("threads", "2"),
        ("threads", 1.5),
        ("threads", 0),
        ("context", "4096"),
        ("vram", "8GiB"),
        ("parallel", "2"),
        ("kv_room", 1.5),
        ("kv_type", None),
        ("kv_type", 16),
        ("ffn", "dense"),
    ],
)
def test_load(option, value):
    options = {"model": Path("no-such.gguf"), option: value}
    with pytest.raises(RequestError, match=rf"^{option} is "):
        Engine.load(options.pop("model"), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "hot"},
        {"temperature": None},
        {"top_k": 1.5},
        {"top_p": "1"},
        {"min_p": []},
        {"seed": "x"},
        {"logit_bias": [1]},
        {"logit_bias": {"1": 2}},
        {"logprobs": 1.5},
    ],
)
def test_sampling(options):
    with pytest.raises(RequestError, match=next(iter(options))):
        Sampling(**options)


def test_what_is_right_is_taken(make_engine):
    with make_engine() as engine:
        for prompt in ("hi", [104, 105], (104, 105), np.array([104, 105], np.int32), iter([104, 105])):
            assert [token.id for token in engine.generate(prompt, max_tokens=2)]
    Request((1,), np.int64(3))


def test_a_sequence_that_is_not_finite_ends_alone(make_engine):
    def spoil(batch):
        for span, rows in batch.rows():
            if ord("x") in batch.tokens[rows]:
                raise NotFiniteError("not finite", span.sequence)

    def answer(engine, prompt):
        return [token.id for token in engine.generate(prompt, max_tokens=6)]

    with make_engine() as engine:
        alone = [answer(engine, prompt) for prompt in ("one", "two")]
    with make_engine(parallel=3) as engine:
        engine.model.transformer.hook = spoil
        streams = [engine.generate(prompt, max_tokens=6) for prompt in ("one", "x", "two")]
        with pytest.raises(NotFiniteError, match="not finite"):
            list(streams[1])
        assert [[token.id for token in stream] for stream in (streams[0], streams[2])] == alone
