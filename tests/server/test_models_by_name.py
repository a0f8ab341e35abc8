"""Several models: loaded on demand, within a budget, the longest unused out first, busy ones never."""

import asyncio
import threading
import time
import weakref

import pytest
from helpers.running_server import Running

from hotset.core.errors import CheckpointError
from hotset.core.limits import Memory
from hotset.server.errors import ApiError
from hotset.server.models import Known, Models


class FakeEngine:
    def __init__(self, name):
        self.name = name
        self.closed = False

    def close(self):
        self.closed = True


def models(*names, room=None, seconds=0.0, bytes=10):
    loaded = []

    def load(known):
        time.sleep(seconds)
        if known.name == "broken":
            raise CheckpointError("broken.gguf is broken")
        loaded.append(known.name)
        return FakeEngine(known.name)

    return Models([Known(name, None, bytes) for name in names], load, room), loaded


async def use(models, name):
    held = await models.take(name)
    models.give_back(held)
    return held.engine


def test_the_longest_unused_goes_first():
    async def run():
        some, loaded = models("a", "b", "c", room=20)
        a, b = await use(some, "a"), await use(some, "b")
        await use(some, "a")
        await use(some, "c")
        assert (a.closed, b.closed) == (False, True)
        assert set(some.held) == {"a", "c"}
        await use(some, "a")
        assert loaded == ["a", "b", "c"]
        await some.close()
        assert a.closed

    asyncio.run(run())


def test_no_more_goes_than_has_to(monkeypatch):
    """What was dropped is out of memory when that is looked at next, whatever the dropping thread does."""
    alive = weakref.WeakSet()

    def load(known):
        engine = FakeEngine(known.name)
        alive.add(engine)
        return engine

    monkeypatch.setattr("hotset.server.models.available_memory", lambda: Memory(30 - 10 * len(alive), ""))

    async def run():
        some = Models([Known(name, None, 10) for name in "abcd"], load)
        for name in "abcd" * 50:
            some.give_back(await some.take(name))
            assert len(some.held) == min(3, len(alive))
        assert list(some.held) == ["b", "c", "d"]

    asyncio.run(run())


def test_busy_models_stay_and_others_wait():
    async def run():
        some, _ = models("a", "b", room=10)
        held = await some.take("a")
        waiting = asyncio.create_task(some.take("b"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert not held.engine.closed
        some.give_back(held)
        assert (await waiting).engine.name == "b"
        assert held.engine.closed

    asyncio.run(run())


def test_requests_for_several_models_at_once_are_all_served():
    """With room for one: it is not dropped before the request that it was loaded for has it."""

    async def run():
        some, loaded = models("a", "b", "c", room=10, seconds=0.01)
        engines = await asyncio.wait_for(asyncio.gather(*(use(some, name) for name in "abcab")), 10)
        assert [engine.name for engine in engines] == [*"abcab"]
        assert loaded == ["a", "b", "c"]

    asyncio.run(run())


def test_requests_that_come_later_wait_for_those_that_wait():
    """However many go on to ask for the model that is there, another one's turn comes."""

    async def run():
        some, loaded = models("a", "b", room=10)
        order = []

        async def ask(name):
            held = await some.take(name)
            order.append(name)
            await asyncio.sleep(0.02)
            some.give_back(held)

        tasks = []
        for name in "aabaaaaa":
            tasks.append(asyncio.create_task(ask(name)))
            await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert "".join(order) == "aabaaaaa"
        assert loaded == ["a", "b", "a"]

    asyncio.run(run())


def test_nothing_is_dropped_for_a_client_that_has_left():
    async def run():
        some, loaded = models("a", "b", "c", room=10)
        held = await some.take("a")
        gone = asyncio.create_task(some.take("b"))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        again = await asyncio.wait_for(some.take("a"), 1)  # at once
        for one in (held, again):
            some.give_back(one)
        await asyncio.sleep(0.01)
        assert (list(some.held), loaded) == (["a"], ["a"])
        assert (await use(some, "c")).name == "c"

    asyncio.run(run())


def test_requests_for_one_model_load_it_once():
    async def run():
        some, loaded = models("a", "b", seconds=0.05)
        gone = asyncio.create_task(some.take("a"))
        others = [asyncio.create_task(some.take("a")) for _ in range(3)]
        await asyncio.sleep(0.01)
        gone.cancel()  # it began the loading, the others still get the model
        engines = {id((await other).engine) for other in others}
        assert len(engines) == 1
        assert loaded == ["a"]
        assert some.held["a"].busy == 3

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded():
    async def run():
        some, _ = models("broken", "a")
        for _ in range(2):
            with pytest.raises(ApiError, match=r"broken\.gguf is broken") as caught:
                await some.take("broken")
            assert caught.value.status == 500
        assert (await use(some, "a")).name == "a"

    asyncio.run(run())


def test_names():
    some, _ = models("a", "b")
    assert some.find(None).name == some.find("").name == "a"
    assert some.find("b:latest").name == "b"
    with pytest.raises(ApiError, match="this server has a, b") as caught:
        some.find("c")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    one, _ = models("only")
    assert one.find("gpt-5").name == "only"


def test_a_server_of_two_models(run_server):
    server = run_server("a", "b", room=1)
    assert [m["id"] for m in server.http.get("/v1/models").json()["data"]] == ["a", "b"]
    names = []
    for name in ("b", "a", "b"):
        answer = server.http.post("/v1/completions", json={"model": name, "prompt": "Hi", "max_tokens": 1})
        names.append(answer.json()["model"])
        loaded = [m["model"] for m in server.http.get("/api/ps").json()["models"]]
        assert name in loaded
    assert names == ["b", "a", "b"]
    listed = {model["name"]: model for model in server.http.get("/api/tags").json()["models"]}
    (held,) = server.http.get("/api/ps").json()["models"]
    assert 0 < listed["b"]["size"] < held["size"]
    assert held["digest"] == listed["b"]["digest"] != listed["a"]["digest"]
    assert len(held["digest"]) == 64
    unknown = server.http.post(
        "/v1/messages", json={"model": "c", "messages": [{"role": "user", "content": "x"}]}
    )
    assert unknown.status_code == 404
    assert unknown.json()["error"]["type"] == "not_found_error"
    for zero in (0, "0", "0m"):
        server.http.post("/api/generate", json={"model": "b"})
        assert [m["model"] for m in server.http.get("/api/ps").json()["models"]] == ["b"]
        assert server.http.post("/api/generate", json={"model": "b", "keep_alive": zero}).status_code == 200
        assert not server.http.get("/api/ps").json()["models"]


def test_a_model_that_is_shown_is_not_loaded_for_that(run_server):
    """Clients ask so of every model in the list; it would drop the one that is used."""
    server = run_server("a", "b", room=1)
    for name in ("a", "b"):
        shown = server.http.post("/api/show", json={"model": name}).json()
        assert shown["capabilities"] == ["completion"]
        assert "<|im_start|>" in shown["template"]
    assert [model["model"] for model in server.http.get("/api/ps").json()["models"]] == ["a"]
    assert shown["model_info"][".context_length"] == 8192


def test_health_answers_while_a_model_is_loaded(make_engine):
    gate = threading.Event()
    running = None

    def load(_):
        gate.wait(10)
        return make_engine()

    def start():
        nonlocal running
        running = Running([Known("x", None)], load)

    thread = threading.Thread(target=start)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()  # it waits for /health to say 200
    gate.set()
    thread.join(20)
    assert running.http.get("/health").status_code == 200
    running.close()
