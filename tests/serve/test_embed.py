"""Vectors of texts: transformers is the oracle."""

import json

import numpy as np
import pytest
from helpers.parity import TOKENS, assert_close
from helpers.tiny_models import save, tiny_models

from hotset.backends.cpu import CpuBackend
from hotset.core.errors import CheckpointError, RequestError, UnsupportedError
from hotset.formats import open_checkpoint
from hotset.formats.pooling import FILE, Pooling, read_pooling
from hotset.model.build import build_transformer
from hotset.serve.engine import Engine
from hotset.serve.loaded import Model
from hotset.serve.request import Request

MADE = (Pooling.MEAN, Pooling.LAST)


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    made = {}

    def peer(name):
        if name not in made:
            model = tiny_models()[name]()
            path = tmp_path_factory.mktemp(name)
            save(model, path)
            made[name] = model, open_checkpoint(path)
        return made[name]

    return peer


def engine_of(checkpoint, tokenizer, pooling, **options):
    backend = CpuBackend(2)
    transformer = build_transformer(checkpoint, backend)
    return Engine(Model(checkpoint.path, transformer, tokenizer, backend, 0, pooling=pooling), **options)


def expected(model, ids, pooling):
    import torch

    with torch.inference_mode():
        hidden = model.model(torch.tensor([list(ids)])).last_hidden_state[0].double().numpy()
    vector = hidden.mean(0) if pooling is Pooling.MEAN else hidden[-1]
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.mark.parametrize("pooling", MADE)
@pytest.mark.parametrize("name", ["qwen3", "llama-biases", "gemma3", "nemotron", "lfm2"])
def test_vectors_are_those_of_transformers(peers, tokenizer, name, pooling):
    model, checkpoint = peers(name)
    with engine_of(checkpoint, tokenizer, pooling, context=64, kv_type="f32") as engine:
        assert_close(engine.embed(TOKENS).result(), expected(model, TOKENS, pooling))


@pytest.mark.parametrize("pooling", MADE)
def test_a_text_has_the_same_vector_in_pieces_and_beside_others(peers, tokenizer, pooling, monkeypatch):
    _, checkpoint = peers("qwen3")
    texts = [[*TOKENS[:30], *TOKENS[10 : 10 + i]] for i in range(0, 30, 3)]  # all begin in the same way
    with engine_of(checkpoint, tokenizer, pooling, context=64) as engine:
        alone = [engine.embed(text).result() for text in texts]
    monkeypatch.setattr("hotset.serve.runner.Pace.prompt_rows", lambda *_: 7)
    with engine_of(checkpoint, tokenizer, pooling, context=64) as engine:
        answers = [engine.submit(Request((3, 4, 5), 50)) for _ in range(2)]
        beside = [engine.embed(text) for text in texts]
        for stream, vector in zip(beside, alone, strict=True):
            assert_close(stream.result(), vector)
        assert all(len(list(answer)) == 50 for answer in answers)
        assert (sum(stream.cached_tokens for stream in beside) > 100) == (pooling is Pooling.LAST)


@pytest.mark.parametrize("pooling", [None, Pooling.CLS, Pooling.RANK, Pooling.NONE])
def test_other_models_say_why_they_give_none(peers, tokenizer, pooling):
    engine = engine_of(peers("qwen3")[1], tokenizer, pooling, context=64)
    with pytest.raises(UnsupportedError, match="expected mean or last"):
        engine.embed(TOKENS)


def test_texts_that_cannot_be_and_streams_that_are_cancelled(peers, tokenizer):
    with engine_of(peers("qwen3")[1], tokenizer, Pooling.MEAN, context=32) as engine:
        with pytest.raises(RequestError, match="45 tokens"):
            engine.embed(TOKENS)
        with pytest.raises(RequestError, match="at least one token"):
            engine.embed([])
        stream = engine.embed(TOKENS[:20])
        stream.cancel()
        with pytest.raises(RequestError, match="cancelled"):
            stream.result()
        assert len(engine.embed(TOKENS[:32]).result()) == 45


def test_what_sentence_transformers_says(peers, tmp_path):
    _, checkpoint = peers("qwen3")
    file = checkpoint.path / FILE
    file.parent.mkdir()
    for flags, pooling in [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, Pooling.LAST),
        ({"pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, Pooling.NONE),
    ]:
        file.write_text(json.dumps(flags))
        assert read_pooling(checkpoint) is pooling
    file.write_text("{")
    with pytest.raises(CheckpointError, match="no JSON"):
        read_pooling(checkpoint)
    file.unlink()
    file.parent.rmdir()
    assert read_pooling(checkpoint) is None
