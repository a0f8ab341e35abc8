"""One line a request in the log, a name for each request, and its count."""

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("hotset.access")

_LONGEST = 200
"""Characters of a path that are logged."""


class Access:
    """ASGI middleware: sees every request first and last."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int, float], None]) -> None:
        """`count` is told route, status and seconds of each request."""
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log it when it is over."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")[:100]
        id = given if given.isascii() and given.isprintable() and given else f"req_{uuid.uuid4().hex[:24]}"
        facts: dict[str, Any] = {}
        scope["state"] = {"id": id, "facts": facts}
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            seconds = time.perf_counter() - start
            status = facts.pop("status", status or 500)
            route = getattr(scope.get("route"), "path", "none")
            self._count(route, status, seconds)
            quiet = facts.pop("quiet", False)
            more = "".join(f" {name}={_plain(str(value))}" for name, value in facts.items())
            path = _plain(scope["path"][:_LONGEST])
            level = logging.DEBUG if quiet else logging.INFO
            log.log(level, "%s %s %s %d %.3fs%s", id, scope["method"], path, status, seconds, more)


def _plain(text: str) -> str:
    """Text that cannot write lines of its own, or to a terminal."""
    return text.encode("unicode_escape").decode().replace(" ", "\\x20")
