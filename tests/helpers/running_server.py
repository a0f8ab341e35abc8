"""A server on loopback, in a thread of the test's process."""

import asyncio
import threading
import time

import httpx

from hotset.server.app import Limits, Server
from hotset.server.models import Models
from hotset.server.run import bind, serve


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
