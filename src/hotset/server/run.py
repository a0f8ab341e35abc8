"""Runs a server until it is told to stop."""

import asyncio
import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from hotset.core.errors import HotsetError, RequestError
from hotset.server.app import Server, make_app
from hotset.server.errors import ApiError

_PATIENCE = 60
"""Seconds that answers have to end once the server is told to stop."""

_IDLE = 120
"""Seconds after which an idle connection is closed: later than clients close theirs, most after 4 to 90 s, or
a request may be on its way just then."""

log = logging.getLogger("hotset.server")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; `RequestError` where that cannot be. Port 0 is any that is free."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, asyncio sends small pieces at once; else each would wait some 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise RequestError(f"{host} is no address of this machine: {error.strerror} (--host)") from None
    if sys.platform != "win32":  # where it would take the port from the program that listens there
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        remedy = (
            "another program uses it, take another --port"
            if error.errno == errno.EADDRINUSE
            else "see --host, --port"
        )
        raise RequestError(f"cannot listen at {host}:{port}: {error.strerror}; {remedy}") from None
    bound.listen(2048)
    return bound


class _Uvicorn(uvicorn.Server):
    """Takes signals as requests to stop, and nothing more; says so to those who ask meanwhile."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal ends the server once its answers are over, the second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._server.closing = True


async def serve(
    server: Server,
    bound: socket.socket,
    *,
    keys: Collection[str] = (),
    host: str = "127.0.0.1",
    origins: Collection[str] = (),
) -> None:
    """Serve until a signal; loads the first model meanwhile. Raises `HotsetError` where that fails."""
    app = make_app(server, keys=keys, host=host, origins=origins)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_PATIENCE,
        timeout_keep_alive=_IDLE,
    )
    listener = _Uvicorn(config, server)
    server.ready = False
    first = asyncio.create_task(_load_first(server, listener))
    try:
        await listener.serve(sockets=[bound])
    finally:
        stopped = first.cancel()  # before the models are closed: it would load its own again
        await server.models.close()
    if not stopped:
        await first


async def _load_first(server: Server, listener: uvicorn.Server) -> None:
    """Load the first model: until then the server says that it is loading."""
    try:
        held = await server.models.take(None)
    except ApiError as error:
        listener.should_exit = True
        cause = error.__cause__
        raise (cause if isinstance(cause, HotsetError) else HotsetError(error.message)) from None
    except Exception as error:  # else the server would say forever that it is loading
        listener.should_exit = True
        name = server.models.find(None).name
        raise HotsetError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
    server.models.give_back(held)
    server.ready = True
    log.info("%s is loaded", held.known.name)
