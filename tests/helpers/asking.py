"""Requests to an engine, and ways to hold up its model."""

import threading
import time

from hotset.serve.request import Request

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
