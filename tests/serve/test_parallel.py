"""Several requests at the same time, over the fake model: texts, order, threads."""

import asyncio
import gc
import threading
import time
from unittest.mock import patch

import pytest
from helpers.asking import LONG, Gate, alone, ask, ids, step_until_idle, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import BusyError, ModelError
from hotset.serve import runner
from hotset.serve.sampler import Sampling
from hotset.state import pool

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


def test_what_comes_back_finds_its_own_prompt_which_is_not_cached(make_engine):
    engine = make_engine()
    stream = engine.generate("a prompt that was computed once", max_tokens=9)
    tokens = [next(stream).id]
    with engine._runner._changed:
        engine._runner._make_way(stream._job)
        engine._runner._tell()
    assert tokens + ids(stream) == alone(make_engine, ask("a prompt that was computed once", max_tokens=9))
    assert stream.cached_tokens == 0
    assert stream.read_tokens == stream.prompt_tokens


def test_an_event_loop_reads_what_was_begun_for_a_thread(make_engine):
    """Nobody else would compute it."""
    engine = make_engine()

    async def read():
        return [token.id async for token in engine.generate("x", max_tokens=20)]

    assert len(asyncio.run(asyncio.wait_for(read(), LONG))) == 20
    wait_for(lambda: engine._runner._thread is None)


def test_cancelling_wakes_the_event_loop_that_waits(make_engine):
    """In the queue too, and where no step ends meanwhile."""
    engine = make_engine(parallel=1)
    gate = Gate(engine)

    async def run():
        first = engine.submit(ask("first", max_tokens=5))
        await asyncio.to_thread(gate.wait)
        stream = engine.submit(ask("second"))
        task = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0.01)
        stream.cancel()
        assert await asyncio.wait_for(task, LONG) is None
        gate.open()
        return [token.id async for token in first]

    assert len(asyncio.run(run())) == 5


@pytest.mark.parametrize("submitted", [True, False])
def test_a_step_that_begins_late_begins_a_request(make_engine, monkeypatch, submitted):
    """Another thread may have had the processor, or the interpreter, since the step began."""
    monkeypatch.setattr(runner, "_LONGEST_ADMITTING", -1.0)
    engine = make_engine()
    requests = [ask(c, max_tokens=4) for c in "abc"]
    begin = engine.submit if submitted else lambda one: engine.generate(one.prompt, max_tokens=4)
    streams = [begin(request) for request in requests]
    assert [ids(stream) for stream in streams] == [alone(make_engine, request) for request in requests]
