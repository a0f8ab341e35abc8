"""The engine over small models of random numbers: answers together as alone, with and without prefixes."""

from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from helpers.parity import assert_close
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Score, Way
from hotset.formats.tensor import TensorType
from hotset.model.build import build_transformer
from hotset.serve import runner
from hotset.serve.engine import Engine
from hotset.serve.loaded import Model
from hotset.serve.request import Request
from hotset.serve.sampler import Sampling
from hotset.state.kv_types import kv_cache_bytes

PLANS = {
    "dense": None,
    "exact": FFNPlan(Way.EXACT),
    "threshold": FFNPlan(Way.THRESHOLD, Score.DOWN, cutoff=0.4),
}


@cache
def model(backend, plan, tokenizer):
    checkpoint = random_checkpoint(windows=(None, 30), hidden_size=32, ffn_size=100)
    if given := PLANS[plan]:
        checkpoint = quantised(by_neuron(checkpoint, given, [np.arange(100)] * 2), TensorType.F16)
    made = ReferenceBackend() if backend == "reference" else CpuBackend(1)
    return Model(Path("random.gguf"), build_transformer(checkpoint, made), tokenizer, made, 0)


on_models = pytest.mark.parametrize(
    ("backend", "plan"),
    [(b, p) for b in ("reference", "cpu") for p in PLANS if (b, p) != ("reference", "exact")],
)

COMMON = [7, 3, 9, 1, 50, 22, 8, 31, 4, 4, 17, 2, 40, 41, 42, 11, 12, 13]


def fresh(model, request):
    return list(Engine(model, context=64).submit(request))


def same(tokens, expected):
    assert [token.id for token in tokens] == [token.id for token in expected]
    for token, other in zip(tokens, expected, strict=True):
        assert token.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-4)


requests = st.lists(
    st.builds(
        lambda tail, count, seed: Request(
            (*COMMON, *tail), count, Sampling(temperature=float(seed > 0), seed=seed, logprobs=1)
        ),
        st.lists(st.integers(0, 52), max_size=20),
        st.integers(1, 20),
        st.integers(0, 3),
    ),
    min_size=2,
    max_size=6,
)


# Not the reference with thresholds: NumPy adds floats in an order that depends on the rows, and the last bits
# of a score may decide on a neuron.
@pytest.mark.parametrize(
    ("backend", "plan"), [("reference", "dense"), ("cpu", "dense"), ("cpu", "exact"), ("cpu", "threshold")]
)
def test_answers_are_as_alone(backend, plan, tokenizer):
    loaded = model(backend, plan, tokenizer)

    @patch.object(runner, "_ROOM_FOR_ANSWER", 1)
    @settings(deadline=None, max_examples=6)
    @given(requests, st.integers(1, 4), st.data())
    def check(asked, parallel, data):
        whole = kv_cache_bytes(loaded.config, 64, "f16")
        engine = Engine(loaded, context=64, parallel=parallel, kv_room=whole * 3 // 2)
        streams = [
            engine.generate(r.prompt, max_tokens=r.max_tokens, sampling=r.sampling) for r in asked[:-1]
        ]
        given = [[] for _ in asked]
        begun = streams[: min(parallel, len(streams))]
        for _ in range(data.draw(st.integers(0, 30))):
            i = data.draw(st.sampled_from(range(len(begun))))
            given[i] += [token] if (token := next(streams[i], None)) else []
        for i, stream in enumerate(streams):
            given[i] += stream
        given[-1] = list(engine.submit(asked[-1]))
        for tokens, request in zip(given, asked, strict=True):
            same(tokens, fresh(loaded, request))

    check()


@on_models
def test_a_conversation_goes_on_as_if_read_from_scratch(backend, plan, tokenizer):
    """In an approximate model the answer is read again, as a prompt; in others its tokens are all cached."""
    loaded = model(backend, plan, tokenizer)
    engine = Engine(loaded, context=64)
    prompt = list(COMMON)
    for _ in range(3):
        request = Request(tuple(prompt), 8, Sampling(logprobs=1))
        stream = engine.submit(request)
        tokens = list(stream)
        same(tokens, fresh(loaded, request))
        expected = {18: 0, 28: 18 if plan == "threshold" else 25, 38: 28 if plan == "threshold" else 35}
        assert stream.cached_tokens == expected[len(prompt)]
        prompt += [token.id for token in tokens] + [5, 6]


@on_models
def test_scores_are_those_of_the_whole_text(backend, plan, tokenizer):
    loaded = model(backend, plan, tokenizer)
    texts = [COMMON, COMMON[::-1], [3] * 64]
    engine = Engine(loaded, context=64)
    scores = engine.score(texts)
    for text, logits in zip(texts, scores, strict=True):
        sequence = loaded.transformer.sequence(64, "f16")
        batch = Batch.of(sequence, np.array(text, np.int32), lossless=True, logits=None)
        assert_close(logits, loaded.transformer.forward(batch))
    assert_close(engine.score(COMMON), scores[0])
