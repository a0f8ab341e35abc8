"""An engine of which something fails, is interrupted or closed; over the fake model."""

import threading
import time
import weakref

import pytest
from helpers.asking import LONG, Gate, alone, ask, ids

from hotset.core.errors import HotsetError, ModelError, RequestError


def test_one_request_fails_alone(make_engine):
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


def test_the_model_fails_all_of_its_batch_and_lives_on(make_engine):
    engine = make_engine()
    streams = [engine.generate(c, max_tokens=50) for c in "ab"]
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
def test_nobody_waits_for_ever_after_a_fault_of_the_engine(make_engine, submitted):
    engine = make_engine(parallel=1)
    begin = (lambda c: engine.submit(ask(c))) if submitted else engine.generate
    engine._pool.grow = lambda *_: 1 / 0
    streams = [begin(c) for c in "ab"]
    for stream in streams:
        with pytest.raises(ModelError, match="ZeroDivisionError"):
            list(stream)
    del engine._pool.grow
    assert len(ids(engine.submit(ask("c", max_tokens=5)))) == 5


def test_an_interrupt_ends_the_answer_of_its_thread_alone(make_engine):
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


def test_no_memory_for_another_sequence(make_engine):
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
def test_closing_ends_all(make_engine, submitted):
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


def test_closing_while_another_thread_waits(make_engine):
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
