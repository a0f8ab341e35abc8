"""Logits of whole texts; over the fake model."""

import numpy as np
import pytest
from helpers.asking import alone, ask, ids

from hotset.core.errors import RequestError


def test_logits_of_every_position(make_engine):
    engine = make_engine(context=1200)
    text = np.random.default_rng(0).integers(0, 256, 1100)
    scores = engine.score(text)
    assert scores.shape == (1100, 257)
    model = engine.model.transformer
    for i in (0, 511, 512, 1099):
        np.testing.assert_array_equal(scores[i], model.logits(text[: i + 1].tolist())[:257])
    assert model.calls == [512, 512, 76]


def test_several_in_one_batch(make_engine):
    engine = make_engine()
    texts = [list(b"first"), list(b"second"), list(b"first again")]
    together = engine.score(texts)
    assert engine.model.transformer.calls == [22]
    for text, scores in zip(texts, together, strict=True):
        np.testing.assert_array_equal(scores, make_engine().score(text))


def test_beside_an_answer(make_engine):
    engine = make_engine(context=2000, parallel=2)
    answer = engine.submit(ask("answer", max_tokens=1000))
    scores = engine.score([list(b"x" * n) for n in (700, 3, 5)])
    assert [len(score) for score in scores] == [700, 3, 5]
    assert ids(answer) == alone(make_engine, ask("answer", max_tokens=1000), context=2000)


@pytest.mark.parametrize(
    ("text", "message"), [([1, 257], "token 257"), ([[1], []], "empty"), ([1] * 201, "201 tokens")]
)
def test_what_cannot_be_scored(make_engine, text, message):
    with pytest.raises(RequestError, match=message):
        make_engine().score(text)
