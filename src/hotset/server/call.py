"""One request over HTTP: its body, its answer, and what it holds until it is over."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.types import Message, Receive, Scope, Send

from hotset.server.errors import ApiError, as_api_error, error_body
from hotset.server.fields import Fields, parse

if TYPE_CHECKING:
    from hotset.server.app import Server

_BODY_SECONDS = 60.0
"""A client that says nothing for so long in the middle of its request has gone."""


def dump(value: Any) -> bytes:
    """JSON in UTF-8."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a pair of surrogates, which a client sent
        return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Streamed:
    """An answer that comes in pieces."""

    media_type: str
    pieces: AsyncIterator[bytes]


@dataclass(frozen=True)
class Raw:
    """An answer that is no JSON."""

    media_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


Reply = dict[str, Any] | Streamed | Raw
Handler = Callable[["Server", "Call"], Awaitable[Reply]]


@dataclass
class Call:
    """A request; what is put on `stack` is let go when it is over, however it ends."""

    scope: Scope
    receive: Receive
    stack: AsyncExitStack
    facts: dict[str, Any] = field(default_factory=dict)
    """For the access line."""

    @property
    def path(self) -> str:
        """The path that was asked for."""
        path: str = self.scope["path"]
        return path

    async def body(self, most: int) -> bytes:
        """The whole body; `ApiError` 413 where it has more than `most` bytes."""
        too_long = ApiError(413, f"the body has more than {most} bytes", code="request_too_large")
        for name, value in self.scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > most:
                raise too_long
        parts: list[bytes] = []
        length = 0
        while True:
            try:
                message: Message = await asyncio.wait_for(self.receive(), _BODY_SECONDS)
            except asyncio.TimeoutError:
                raise ApiError(408, "the body did not end") from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > most:
                raise too_long
            if not message.get("more_body"):
                return b"".join(parts)


class ClientGoneError(Exception):
    """Nobody reads the answer."""


class Endpoint:
    """An ASGI app that answers one kind of request by a handler, as long as the client is there."""

    def __init__(self, server: "Server", handler: Handler) -> None:
        self._server = server
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        async with AsyncExitStack() as stack:
            call = Call(scope, receive, stack, scope["state"].setdefault("facts", {}))
            sent = Sent(send)
            try:
                if scope["method"] == "POST":
                    scope["state"]["body"] = await call.body(self._server.limits.body)
                await while_connected(receive, self._answer(call, sent))
            except ClientGoneError:
                call.facts["status"] = 499
            except Exception as error:
                if sent.begun:
                    raise
                if not isinstance(known := as_api_error(error), ApiError) or known.status == 500:
                    self._server.log_failure(error)
                await send_error(send, call.path, known)

    async def _answer(self, call: Call, send: "Sent") -> None:
        reply = await self._handler(self._server, call)
        if isinstance(reply, Streamed):
            async with aclosing(reply.pieces) as pieces:  # type: ignore[type-var]
                await send.head(
                    200, reply.media_type, {"cache-control": "no-cache", "x-accel-buffering": "no"}
                )
                async for piece in pieces:
                    await send.body(piece, more=True)
                await send.body(b"", more=False)
        else:
            raw = reply if isinstance(reply, Raw) else Raw("application/json", dump(reply))
            await send.head(200, raw.media_type, {"content-length": str(len(raw.body)), **raw.headers})
            await send.body(raw.body, more=False)


class Sent:
    """The answer's way back."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def head(self, status: int, media_type: str, headers: dict[str, str]) -> None:
        """Send the status and the headers."""
        self.begun = True
        given = {"content-type": media_type, **headers}
        pairs = [(name.encode(), value.encode()) for name, value in given.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def body(self, body: bytes, *, more: bool) -> None:
        """Send a piece of the body; waits where the client reads slowly."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def send_error(send: Send, path: str, error: ApiError) -> None:
    """Answer with an error, in the shape of the path's API."""
    body = dump(error_body(path, error))
    sent = Sent(send)
    await sent.head(error.status, "application/json", {"content-length": str(len(body)), **error.headers})
    await sent.body(body, more=False)


def fields_of(call: Call) -> Fields:
    """The body's object."""
    return parse(call.scope["state"]["body"])


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Work until it is done, or until the client goes: then stop at once, and raise `ClientGoneError`."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return
        raise ClientGoneError
    finally:
        for future in (task, gone):
            if not future.done():
                future.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await future


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
