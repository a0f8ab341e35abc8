"""Drafts in the engine: the same answer with them as without, in every way of asking for it."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint, recurrent
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import (
    DeltaNetConfig,
    FFNPlan,
    LayerConfig,
    Score,
    ShortConvConfig,
    Way,
)
from hotset.core.errors import RequestError
from hotset.formats.tensor import TensorType
from hotset.model.build import build_transformer
from hotset.model.finite import NotFiniteError
from hotset.serve import job as jobs
from hotset.serve import runner
from hotset.serve.engine import Engine
from hotset.serve.loaded import Model
from hotset.serve.request import Request
from hotset.serve.sampler import Sampling
from hotset.state import pool

LOOP = b"One line of it.\nAnother line.\n" * 4


class Guesser:
    """In a drafter's place: drafts of any length that are right for a while, as it knows the answer."""

    def __init__(self, random, answer):
        self.random, self.answer = random, answer
        self.seen = 0

    def chances(self, tokens, most):
        return [1.0] * max(0, min(most, self.random.integers(8)))

    def draft(self, tokens, count):
        right = self.answer[self.seen : self.seen + self.random.integers(count + 1)]
        return np.append(right, self.random.integers(0, 53, count - len(right))).astype(np.int32)

    def see(self, tokens, token):
        self.seen += 1


def random_model(tokenizer, plan=None, shape=None):
    if shape:
        checkpoint = random_checkpoint(layers=(LayerConfig(None),) * 3, context_length=200)
        checkpoint = recurrent(checkpoint, [shape, None, shape])
    else:
        checkpoint = random_checkpoint(windows=(None, 30), hidden_size=32, ffn_size=100, context_length=200)
    if plan:
        checkpoint = quantised(by_neuron(checkpoint, plan, [np.arange(100)] * 2), TensorType.F16)
    backend = CpuBackend(1)
    return Model(Path("random.gguf"), build_transformer(checkpoint, backend), tokenizer, backend, 0)


MODELS = {
    "dense": {},
    "nets": {"shape": DeltaNetConfig(2, 4, 8, 4, tiled=True)},
    "convolutions": {"shape": ShortConvConfig(20, 3)},
    "exact": {"plan": FFNPlan(Way.EXACT)},
    "threshold": {"plan": FFNPlan(Way.THRESHOLD, Score.DOWN, cutoff=0.4)},
    "audited": {"plan": FFNPlan(Way.PREDICTOR, Score.GATE_Q4, 0.1, kept=0.9)},
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request, tokenizer):
    return random_model(tokenizer, **MODELS[request.param])


SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 0.8]),
    top_k=st.sampled_from([0, 5]),
    seed=st.integers(0, 3),
    repetition_penalty=st.sampled_from([1, 1.2]),
    presence_penalty=st.sampled_from([0, 0.5]),
    frequency_penalty=st.sampled_from([0, 0.3]),
    logprobs=st.just(3),
)
REQUESTS = st.lists(
    st.builds(
        Request,
        st.lists(st.integers(0, 52), min_size=1, max_size=40).map(tuple),
        max_tokens=st.integers(1, 60),
        sampling=SAMPLING,
        stop=st.sampled_from([(), ("\x07",), ("\x05\x06", "\x0b")]),
    ),
    min_size=1,
    max_size=4,
)


def begin(engine, job):
    """A job that goes on by itself, but is stepped by hand."""
    engine._runner.add(job)
    job.lasting = True


def alone(model, request):
    """The answer without drafts."""
    return list(Engine(model, context=120, kv_type="f32", speculate=False).submit(request))


@settings(deadline=None, max_examples=25)
@given(requests=REQUESTS, parallel=st.integers(1, 4), tight=st.booleans(), seed=st.integers(0, 1 << 32))
def test_any_drafts_leave_answers_as_they_are(model, requests, parallel, tight, seed):
    """Of one request or of several, begun at any time, cancelled, made way for; to the bit."""
    random = np.random.default_rng(seed)
    expected = [alone(model, request) for request in requests]
    engine = Engine(model, context=120, kv_type="f32", parallel=parallel)
    if tight:
        engine._pool.room = engine._pool._bytes_at(120) * 3 // 2
    started, cancelled = [], set()
    with patch.object(runner, "_ROOM_FOR_ANSWER", 1), patch.object(pool, "_BLOCK", 4):
        for request, answer in zip(requests, expected, strict=True):
            job = engine._answer(request)
            job._drafter = Guesser(random, [token.id for token in answer])
            begin(engine, job)
            started.append(job)
            for _ in range(random.integers(6)):
                engine.step()
            if random.integers(6) == 0:
                victim = int(random.integers(len(started)))
                cancelled.add(victim)
                engine._runner.cancel(started[victim])
        while engine.step():
            pass
    for i, (job, answer) in enumerate(zip(started, expected, strict=True)):
        assert job.done
        assert 0 <= job.accepted <= job.drafted
        if i not in cancelled:
            assert list(job.out) == answer
    # What was computed of drafts is no other request's past.
    for request, answer in zip(requests, expected, strict=True):
        again = engine._answer(request)
        begin(engine, again)
        while engine.step():
            pass
        assert list(again.out) == answer
    assert engine._pool.used == 0


@settings(deadline=None, max_examples=25)
@given(tokens=st.lists(st.integers(0, 52), min_size=80, max_size=80), data=st.data())
def test_rows_in_one_call_are_as_one_by_one(model, tokens, data):
    """Also after rows that were taken back: for every way of computing, with audits between them."""
    ids = np.array(tokens, np.int32)
    one = model.transformer.sequence(100, "f16")
    expected = np.concatenate([model.transformer.forward(Batch.of(one, ids[i : i + 1])) for i in range(80)])
    many = model.transformer.sequence(100, "f16")
    while many.length < 80:
        start = many.length
        most = max(1, min(80 - start, many.undoable))
        right, wrong = data.draw(st.integers(1, most)), data.draw(st.integers(0, 6))
        wrong = max(0, min(wrong, many.undoable - right))
        rows = np.concatenate([ids[start : start + right], ids[:wrong]])
        logits = model.transformer.forward(Batch.of(many, rows, logits=None))[:right]
        np.testing.assert_array_equal(logits, expected[start : start + right])
        if wrong:
            assert many.reusable(start + right) == start + right
            many.rewind(start + right)
    for mine, other in zip(many.choosers, one.choosers, strict=True):
        assert not mine or mine.cutoff == other.cutoff


def test_nets_can_undo_within_a_chunk(tokenizer):
    sequence = random_model(tokenizer, **MODELS["nets"]).transformer.sequence(100, "f32")
    assert sequence.undoable == 15
    sequence.advance(10)
    assert sequence.undoable == 5


def ask(text, **options):
    return Request(tuple(text), **options)


@pytest.fixture(scope="module")
def looping(make_engine):
    """An engine whose model writes LOOP."""

    def make(**options):
        return make_engine(script=LOOP, **options)

    return make


def test_fewer_steps(looping):
    engine = looping()
    stream = engine.submit(ask(b"Write:\n" + LOOP[:60] + b"|"))
    assert "".join(token.text for token in stream) == LOOP.decode()
    assert 0 < stream.accepted_tokens <= stream.drafted_tokens
    steps = len(engine.model.transformer.calls)
    assert steps == 1 + len(LOOP) - stream.accepted_tokens
    assert steps < len(LOOP) // 4


@pytest.mark.parametrize("how", ["engine", "request"])
def test_not_where_it_is_not_wanted(looping, how):
    engine = looping(speculate=how != "engine")
    stream = engine.submit(ask(b"Write:\n" + LOOP[:60] + b"|", speculate=how != "request"))
    assert "".join(token.text for token in stream) == LOOP.decode()
    assert stream.drafted_tokens == 0
    assert max(engine.model.transformer.calls[1:]) == 1


def test_speculate_is_true_or_false():
    with pytest.raises(RequestError, match="speculate"):
        Request((1,), speculate=1)


@settings(deadline=None, max_examples=40)
@given(
    limit=st.integers(1, len(LOOP) + 5),
    stop=st.sampled_from([(), ("\nAnother line.\nO",), ("it.\nA", "line.\nOne line"), ("zebra",)]),
    loops=st.integers(1, 4),
)
def test_ends_within_a_draft(looping, limit, stop, loops):
    """By length, by a stop string or by the end token: no token more or less, no text of a stop string."""
    request = ask(b"Write:\n" + LOOP[: 30 * loops] + b"|", max_tokens=limit, stop=stop)
    engine = looping(context=300)
    expected = list(looping(context=300, speculate=False).submit(request))
    assert list(engine.submit(request)) == expected
    assert list(engine.submit(request)) == expected  # by what the first has left


def test_no_row_is_drafted_that_cannot_be_used(looping):
    """A draft ends where the answer has to: at its last token, at the context's end."""
    engine = looping(context=80)
    prompt = b"Write:\n" + LOOP[:50] + b"|"
    stream = engine.submit(ask(prompt))
    assert len(list(stream)) == 80 - len(prompt)
    engine = looping()
    assert len(list(engine.submit(ask(prompt, max_tokens=2)))) == 2
    assert engine.model.transformer.calls == [len(prompt), 1]


def test_cancelled_within_a_draft(looping):
    engine = looping()
    stream = engine.generate(list(b"Write:\n" + LOOP[:60] + b"|"))
    for _ in range(20):
        next(stream)
    stream.cancel()
    assert list(stream) == []
    assert engine.running == engine._pool.used == 0


def test_infinities_in_a_draft_harm_nobody(looping):
    """A token that nobody has chosen cannot end an answer."""
    engine = looping()

    def hook(batch):
        if len(batch.tokens) > 1 and batch.spans[0].sequence.length > 70:
            raise NotFiniteError("infinite", batch.spans[0].sequence)

    engine.model.transformer.hook = hook
    stream = engine.submit(ask(b"Write:\n" + LOOP[:60] + b"|"))
    assert "".join(token.text for token in stream) == LOOP.decode()

    def broken(batch):
        raise NotFiniteError("infinite", batch.spans[0].sequence)

    engine.model.transformer.hook = broken
    with pytest.raises(NotFiniteError, match="infinite"):
        list(engine.submit(ask(b"Write:\n" + LOOP[:60] + b"|")))


def test_a_draft_makes_nobody_make_way(looping):
    """Rows of drafts take room that is free, and no other's."""
    engine = looping(parallel=2, context=200)
    engine._pool.room = engine._pool._bytes_at(64) + engine._pool._bytes_at(128)
    streams = [engine.submit(ask(b"Write:\n" + LOOP[:30] + b"|", max_tokens=20)) for _ in range(2)]
    assert [len(list(stream)) for stream in streams] == [20, 20]


def test_interrupted_after_a_draft_was_computed(looping):
    """What lies behind the known tokens is no obstacle to going on."""
    engine = looping()
    job = engine._answer(ask(b"Write:\n" + LOOP[:60] + b"|"))
    begin(engine, job)
    accept = jobs.Answer.accept

    def interrupted(self, logits):
        if len(logits) > 4:
            raise KeyboardInterrupt
        return accept(self, logits)

    with patch.object(jobs.Answer, "accept", interrupted), pytest.raises(KeyboardInterrupt):
        while engine.step():
            pass
    while engine.step():
        pass
    assert "".join(token.text for token in job.out) == LOOP.decode()
