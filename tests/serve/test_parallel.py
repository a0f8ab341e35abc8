"""Several requests at the same time, over the fake model: texts, order, prefixes, faults, threads."""

import asyncio
import gc
import threading
import time
import weakref
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import BusyError, HotsetError, ModelError, RequestError
from hotset.serve import runner
from hotset.serve.request import Request
from hotset.serve.sampler import Sampling
from hotset.state import pool

LONG = 60  # seconds that no test takes


def ask(text, **options):
    return Request(tuple(text.encode()), **options)


def ids(tokens):
    return [token.id for token in tokens]


def alone(make_engine, request, **options):
    return ids(make_engine(**options).submit(request))


def step_until_idle(engine):
    while engine.step():
        pass


def wait_for(what):
    end = time.monotonic() + LONG
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """Holds up the model: each step waits until it is allowed."""

    def __init__(self, engine):
        self.inside = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        engine.model.transformer.hook = self

    def __call__(self, batch):
        self.inside.release()
        assert self.allowed.acquire(timeout=LONG)

    def wait(self):
        """Until a step has begun."""
        assert self.inside.acquire(timeout=LONG)

    def step(self):
        """Let the step that has begun go on, and wait for the next."""
        self.allowed.release()
        self.wait()

    def open(self):
        """Let all go on."""
        for _ in range(100_000):
            self.allowed.release()


REQUESTS = st.lists(
    st.builds(
        ask,
        st.text("ab", min_size=1, max_size=40).map(lambda text: "a common beginning, " * 2 + text),
        max_tokens=st.integers(1, 12),
        sampling=st.builds(
            Sampling,
            temperature=st.sampled_from([0, 1]),
            seed=st.integers(0, 3),
            logprobs=st.sampled_from([2]),
        ),
    ),
    min_size=2,
    max_size=7,
)


@settings(deadline=None, max_examples=40)
@given(requests=REQUESTS, parallel=st.integers(1, 4), room=st.integers(800, 2000), data=st.data())
def test_each_answer_is_as_alone(make_engine, requests, parallel, room, data):
    """Whatever runs beside it, begins later, is cancelled, or has to make room."""
    with patch.object(runner, "_ROOM_FOR_ANSWER", 1), patch.object(pool, "_BLOCK", 4):
        check_answers(make_engine, requests, make_engine(parallel=parallel, kv_room=room), data)


def check_answers(make_engine, requests, engine, data):
    streams, cancelled = [], set()
    for request in requests:
        for _ in range(data.draw(st.integers(0, 5))):
            engine.step()
        job = engine._answer(request)
        engine._runner.add(job)
        job.lasting = True  # it goes on by itself, but is stepped by hand
        streams.append(job)
        if data.draw(st.booleans()) and data.draw(st.booleans()):
            victim = data.draw(st.sampled_from(range(len(streams))))
            cancelled.add(victim)
            engine._runner.cancel(streams[victim])
    step_until_idle(engine)
    assert engine.running == engine.waiting == engine._pool.used == 0
    assert engine._pool.bytes <= engine._pool.room
    for i, (job, request) in enumerate(zip(streams, requests, strict=True)):
        assert job.done
        if i not in cancelled:
            expected = list(make_engine().submit(request))
            assert list(job.out) == expected


def test_requests_submitted_by_many_threads_are_all_answered(make_engine):
    engine = make_engine(parallel=3)
    requests = [ask(f"question {i % 5}", max_tokens=8, sampling=Sampling(1.0, seed=i)) for i in range(16)]
    answers = {}

    def run(i):
        request = requests[i]
        if i % 2:
            stream = engine.generate(request.prompt, max_tokens=8, sampling=request.sampling)
        else:
            stream = engine.submit(request)
        answers[i] = ids(stream)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    for i, request in enumerate(requests):
        assert answers[i] == alone(make_engine, request)
    wait_for(lambda: engine._runner._thread is None)  # none is left once nothing is to be done


def test_answers_share_steps(make_engine):
    engine = make_engine()
    streams = [engine.generate(f"prompt {i}", max_tokens=20) for i in range(4)]
    for stream in streams:
        assert len(ids(stream)) == 20
    calls = engine.model.transformer.calls
    # One after the other they would take 80 steps; who is not read runs ahead by a few tokens only.
    assert len(calls) < 80
    assert max(calls[1:]) == 4


def test_streams_that_are_submitted_go_on_by_themselves(make_engine):
    engine = make_engine(b"Hello")
    news = threading.Event()
    stream = engine.submit(ask("Say|"), notify=news.set)
    tokens = []
    while not stream.finished:
        assert news.wait(LONG)
        news.clear()
        tokens += stream.poll()
    assert "".join(token.text for token in tokens) == "Hello"
    assert stream.poll() == []
    assert stream.prompt_tokens == stream.read_tokens == 4


def test_an_event_loop_reads_streams(make_engine):
    engine = make_engine()
    requests = [ask(f"question {i}", max_tokens=10) for i in range(4)]

    async def read(request):
        return [token.id async for token in engine.submit(request)]

    async def main():
        return await asyncio.gather(*map(read, requests))

    assert asyncio.run(main()) == [alone(make_engine, request) for request in requests]


def test_an_event_loop_is_told_of_cancelling_and_of_errors(make_engine):
    engine = make_engine()
    gate = Gate(engine)

    async def cancel():
        stream = engine.submit(ask("x"))
        asyncio.get_running_loop().call_later(0.01, stream.cancel)
        return [token async for token in stream]

    async def fail():
        gate.open()
        engine.model.transformer.hook = None
        engine.model.transformer.forward = lambda batch: 1 / 0
        return [token async for token in engine.submit(ask("x"))]

    wait = threading.Thread(target=lambda: (gate.wait(), time.sleep(0.05), gate.allowed.release()))
    wait.start()
    assert asyncio.run(cancel()) == []
    wait.join()
    with pytest.raises(ModelError, match="the model failed: ZeroDivisionError: division by zero"):
        asyncio.run(fail())


@pytest.mark.parametrize("stage", ["queued", "prompt", "answer"])
def test_cancelling_frees_at_any_stage(make_engine, stage):
    engine = make_engine(parallel=1, context=2000)
    gate = Gate(engine)
    first = engine.submit(ask("x" * 1500, max_tokens=100))
    gate.wait()  # reads the first 512 tokens
    second = engine.submit(ask("second", max_tokens=3))
    assert (engine.running, engine.waiting) == (1, 1)
    if stage == "queued":
        second.cancel()
        gate.step()
        assert (engine.running, engine.waiting) == (1, 0)
        gate.open()
        assert list(second) == []
        assert len(ids(first)) == 100
        return
    for _ in range(0 if stage == "prompt" else 6):
        gate.step()
    assert (first.read_tokens == 1500) == (stage == "answer")
    calls = len(engine.model.transformer.calls)
    first.cancel()
    gate.step()
    # The next step is the second's.
    assert engine.model.transformer.spans[calls] == [(0, 6, True)]
    gate.open()
    assert ids(second) == alone(make_engine, ask("second", max_tokens=3))
    assert list(first) == []
    assert engine._pool.used == 0


@pytest.mark.parametrize("way", ["drop", "close", "with", "break"])
def test_what_nobody_reads_any_more_is_freed(make_engine, way):
    engine = make_engine()
    stream = engine.generate("a prompt")
    next(stream)
    assert engine.running == 1
    if way == "drop":
        del stream
        gc.collect()
    elif way == "close":
        stream.close()
    elif way == "with":
        with stream:
            next(stream)
    else:
        del stream
        for _ in engine.generate("other"):
            break
    assert engine.running == engine._pool.used == 0
    submitted = engine.submit(ask("z", max_tokens=199))
    next(submitted)
    del submitted
    wait_for(lambda: engine.running == 0 and engine._runner._thread is None)


def test_a_full_queue_refuses(make_engine):
    engine = make_engine(parallel=1, queue=2)
    gate = Gate(engine)
    streams = [engine.submit(ask("a", max_tokens=2))]
    gate.wait()
    streams += [engine.submit(ask(c, max_tokens=2)) for c in "bc"]
    with pytest.raises(BusyError, match="2 requests are waiting already: try again later"):
        engine.submit(ask("d"))
    streams[1].cancel()
    gate.step()
    streams.append(engine.submit(ask("e", max_tokens=2)))
    gate.open()
    assert [len(ids(stream)) for stream in streams] == [2, 0, 2, 2]


def test_one_thread_that_holds_all_places_is_told(make_engine):
    engine = make_engine(parallel=1)
    first = engine.generate("first")
    next(first)
    with pytest.raises(BusyError, match=r"busy: answers that were begun here hold all places \(1\); read"):
        next(engine.generate("second"))
    second = engine.submit(ask("second", max_tokens=2))
    with pytest.raises(BusyError):
        next(second)
    first.close()
    assert len(ids(engine.generate("second", max_tokens=2))) == 2
    # A stream may be begun in one thread and closed in another; who waits is served then.
    third = engine.generate("third")
    thread = threading.Thread(target=lambda: next(third))
    thread.start()
    thread.join()
    closer = threading.Timer(0.02, third.close)
    closer.start()
    assert len(ids(engine.generate("fourth", max_tokens=2))) == 2


def test_a_reader_that_is_slow_is_waited_for(make_engine):
    engine = make_engine(parallel=1)

    def slow():
        for _ in engine.generate("slow", max_tokens=12):
            begun.set()
            time.sleep(0.002)

    begun = threading.Event()
    thread = threading.Thread(target=slow)
    thread.start()
    assert begun.wait(LONG)
    assert len(ids(engine.generate("second", max_tokens=3))) == 3
    thread.join(LONG)
    assert not thread.is_alive()


def test_prompts_take_turns_and_answers_go_on(make_engine):
    engine = make_engine(context=4000)
    engine._runner._pace.prompt_rows = lambda answers, spent: 34
    answer = engine.generate("answer", max_tokens=60)
    next(answer)
    prompts = [engine.generate(c * 200, max_tokens=1) for c in "pq"]
    engine.model.transformer.spans.clear()
    for _ in range(8):
        next(answer)
    for i, spans in enumerate(engine.model.transformer.spans[:8]):
        assert set(spans) == {(7 + i - 1, 1, False), (34 * (i // 2), 34, True)}
    for prompt in prompts:
        assert len(ids(prompt)) == 1


def test_the_request_that_came_last_makes_way_and_comes_back(make_engine):
    """Three answers outgrow the room, which has two of them; the oldest never waits."""
    engine = make_engine(parallel=3, kv_room=4 * 400)
    requests = [ask(c * 20, max_tokens=180, sampling=Sampling(1.0, seed=1)) for c in "abc"]
    with patch.object(runner, "_ROOM_FOR_ANSWER", 1):
        jobs = [engine._answer(request) for request in requests]
        for job in jobs:
            engine._runner.add(job)
            job.lasting = True
        seen = []
        while engine.step():
            seen.append((engine.running, jobs[0].slot is None and not jobs[0].done))
            assert engine._pool.bytes <= engine._pool.room
    assert {running for running, _ in seen} >= {3, 2}
    assert not any(waits for _, waits in seen)
    assert (0, 20, True) in engine.model.transformer.spans[0]
    # What had to make way is read again in a batch: its prompt, then its answer, which is no prompt.
    again = [span for spans in engine.model.transformer.spans[1:] for span in spans if span[1] > 1]
    assert any(not lossless for _, _, lossless in again)
    for job, request in zip(jobs, requests, strict=True):
        assert ids(job.out) == alone(make_engine, request)


class TestPrefixes:
    def test_several_are_kept_and_the_longest_is_taken(self, make_engine):
        engine = make_engine()
        chats = ["Alice tells a story, and ", "Bob has something to say: ", "Alice tells a story. The end"]
        for chat in chats:
            list(engine.submit(ask(chat, max_tokens=5)))
        for chat in chats:
            stream = engine.submit(ask(chat + "more", max_tokens=5))
            tokens = ids(stream)
            assert stream.cached_tokens == len(chat)
            assert tokens == alone(make_engine, ask(chat + "more", max_tokens=5))

    def test_of_a_running_sequence_as_well(self, make_engine):
        engine = make_engine()
        first = engine.generate("a prompt that two have in common|1", max_tokens=9)
        begun = [next(first).id]
        second = engine.generate("a prompt that two have in common|2", max_tokens=9)
        tokens = ids(second)
        assert second.cached_tokens == len("a prompt that two have in common|")
        assert tokens == alone(make_engine, ask("a prompt that two have in common|2", max_tokens=9))
        assert begun + ids(first) == alone(
            make_engine, ask("a prompt that two have in common|1", max_tokens=9)
        )

    def test_a_prompt_is_read_once_for_all_who_ask_it_at_the_same_time(self, make_engine):
        engine = make_engine(context=2000)
        prompt = "x" * 1200
        streams = [engine.generate(prompt + c, max_tokens=3) for c in "abcd"]
        assert [len(ids(stream)) for stream in streams] == [3] * 4
        assert sum(engine.model.transformer.calls) == 1201 + 3 + 4 * 2
        assert [stream.cached_tokens for stream in streams] == [0, 1200, 1200, 1200]

    def test_the_one_not_used_for_longest_is_dropped(self, make_engine):
        engine = make_engine(kv_room=4 * 250, context=200)  # positions of four bytes
        texts = [c * 90 for c in "abc"]
        cached = []
        for text in (*texts, texts[2], texts[0]):
            stream = engine.generate(text + "!", max_tokens=1)
            list(stream)
            cached.append(stream.cached_tokens)
            assert engine._pool.bytes <= 4 * 250
        assert cached == [0, 0, 0, 90, 0]

    def test_only_lengths_that_the_model_can_go_back_to(self, make_engine):
        engine = make_engine()
        engine.model.transformer.saved = (20,)
        list(engine.generate("a prompt that two have in common|1", max_tokens=3))
        second = engine.generate("a prompt that two have in common|2", max_tokens=3)
        assert ids(second) == alone(make_engine, ask("a prompt that two have in common|2", max_tokens=3))
        assert second.cached_tokens == 20

    def test_an_approximate_answer_is_no_prefix_for_others(self, make_engine):
        engine = make_engine(b"an answer of some length")
        engine._pool._approximate = True
        prompt = "a question of some length|"
        text = "".join(token.text for token in engine.generate(prompt))
        stream = engine.generate(prompt + text + "|", max_tokens=1)
        list(stream)
        assert stream.cached_tokens == len(prompt)


class TestFaults:
    def test_one_request_fails_alone(self, make_engine):
        engine = make_engine()
        good = engine.generate("good", max_tokens=6)
        bad = engine.generate("bad", max_tokens=6)
        tokens = [next(good).id]
        next(bad)

        def sample(logits, allowed):
            raise RequestError("no token can be chosen")

        bad._job._sampler.sample = sample
        with pytest.raises(RequestError, match="no token can be chosen"):
            list(bad)
        assert list(bad) == []
        assert tokens + ids(good) == alone(make_engine, ask("good", max_tokens=6))
        assert engine._pool.used == 0

    def test_the_model_fails_all_of_its_batch_and_lives_on(self, make_engine):
        engine = make_engine()
        streams = [engine.submit(ask(c, max_tokens=50)) for c in "ab"]
        for stream in streams:
            next(stream)

        def fail(batch):
            raise ValueError("a layer\nis broken")

        engine.model.transformer.hook = fail
        for stream in streams:
            with pytest.raises(ModelError, match="^the model failed: ValueError: a layer is broken$"):
                list(stream)
        engine.model.transformer.hook = None
        assert engine._pool.kept == engine._pool.used == 0
        request = ask("afterwards", max_tokens=5)
        assert ids(engine.submit(request)) == alone(make_engine, request)

    @pytest.mark.parametrize("submitted", [True, False])
    def test_nobody_waits_for_ever_after_a_fault_of_the_engine(self, make_engine, submitted):
        engine = make_engine(parallel=1)
        begin = (lambda c: engine.submit(ask(c))) if submitted else engine.generate
        engine._pool.grow = lambda *_: 1 / 0
        streams = [begin(c) for c in "ab"]
        for stream in streams:
            with pytest.raises(ModelError, match="ZeroDivisionError"):
                list(stream)
        del engine._pool.grow
        assert len(ids(engine.submit(ask("c", max_tokens=5)))) == 5

    def test_an_interrupt_ends_the_answer_of_its_thread_alone(self, make_engine):
        engine = make_engine()
        first, second = (engine.generate(c, max_tokens=8) for c in "ab")
        tokens = [next(second).id]

        def interrupt(batch):
            engine.model.transformer.hook = None
            raise KeyboardInterrupt

        engine.model.transformer.hook = interrupt
        with pytest.raises(KeyboardInterrupt):
            list(first)
        assert list(first) == []
        assert tokens + ids(second) == alone(make_engine, ask("b", max_tokens=8))

    def test_no_memory_for_another_sequence(self, make_engine):
        engine = make_engine()
        new = engine.model.transformer.sequence
        alive = weakref.WeakSet()
        most = 2

        def sequence(capacity, kv_type):
            if len(alive) >= most:
                raise MemoryError
            made = new(capacity, kv_type)
            alive.add(made)
            return made

        engine.model.transformer.sequence = sequence
        streams = [engine.generate(c, max_tokens=4) for c in "abc"]
        assert [len(ids(stream)) for stream in streams] == [4, 4, 4]  # the third waits
        most = 0
        with pytest.raises(HotsetError, match="no memory for a sequence"):
            next(engine.generate("d"))

    @pytest.mark.parametrize("submitted", [True, False])
    def test_closing_ends_all(self, make_engine, submitted):
        engine = make_engine(parallel=1)
        engine.model.transformer.hook = lambda batch: time.sleep(0.001)
        begin = (lambda c: engine.submit(ask(c))) if submitted else engine.generate
        streams = [begin(c) for c in "ab"]
        next(streams[0])
        engine.close()
        for stream in streams:
            with pytest.raises(RequestError, match="this engine was closed"):
                list(stream)
        with pytest.raises(RequestError, match="this engine is closed"):
            engine.generate("c")
        assert engine._runner._thread is None
        assert engine._pool.bytes == 0

    def test_closing_while_another_thread_waits(self, make_engine):
        engine = make_engine()
        gate = Gate(engine)
        failed = []

        def read():
            try:
                list(engine.submit(ask("x")))
            except RequestError as error:
                failed.append(str(error))

        thread = threading.Thread(target=read)
        thread.start()
        gate.wait()
        opener = threading.Timer(0.02, gate.open)
        opener.start()
        with engine:
            pass
        thread.join(LONG)
        assert failed == ["this engine was closed"]


class TestScores:
    def test_logits_of_every_position(self, make_engine):
        engine = make_engine(context=1200)
        text = np.random.default_rng(0).integers(0, 256, 1100)
        scores = engine.score(text)
        assert scores.shape == (1100, 257)
        model = engine.model.transformer
        for i in (0, 511, 512, 1099):
            np.testing.assert_array_equal(scores[i], model.logits(text[: i + 1].tolist())[:257])
        assert model.calls == [512, 512, 76]

    def test_several_in_one_batch(self, make_engine):
        engine = make_engine()
        texts = [list(b"first"), list(b"second"), list(b"first again")]
        together = engine.score(texts)
        assert engine.model.transformer.calls == [22]
        for text, scores in zip(texts, together, strict=True):
            np.testing.assert_array_equal(scores, make_engine().score(text))

    def test_beside_an_answer(self, make_engine):
        engine = make_engine(context=2000, parallel=2)
        answer = engine.submit(ask("answer", max_tokens=1000))
        scores = engine.score([list(b"x" * n) for n in (700, 3, 5)])
        assert [len(score) for score in scores] == [700, 3, 5]
        assert ids(answer) == alone(make_engine, ask("answer", max_tokens=1000), context=2000)

    @pytest.mark.parametrize(
        ("text", "message"), [([1, 257], "token 257"), ([[1], []], "empty"), ([1] * 201, "201 tokens")]
    )
    def test_what_cannot_be_scored(self, make_engine, text, message):
        with pytest.raises(RequestError, match=message):
            make_engine().score(text)
