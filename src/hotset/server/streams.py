"""Answers as they come: what all forms of streams have in common."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from hotset.core.errors import HotsetError
from hotset.server.answers import Answer, Piece
from hotset.server.call import Streamed, dump
from hotset.server.errors import ApiError, as_api_error
from hotset.server.generation import Generation

SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


class Form(Protocol):
    """How an API writes a stream."""

    media_type: str
    alive: bytes
    """Says that there is nothing new."""

    def begin(self, generation: Generation) -> bytes:
        """What comes first."""

    def news(self, answer: Answer, pieces: list[Piece]) -> bytes:
        """What is new of an answer, and its end where it has a finish reason."""

    def end(self, generation: Generation) -> bytes:
        """What comes last."""

    def failed(self, error: ApiError) -> bytes:
        """An error in the middle, after which nothing comes."""


def streamed(generation: Generation, form: Form, keep_alive: float | None) -> Streamed:
    """The answers in a form."""
    return Streamed(form.media_type, _bytes(generation, form, keep_alive if form.alive else None))


async def _bytes(generation: Generation, form: Form, keep_alive: float | None) -> AsyncIterator[bytes]:
    try:
        if begin := form.begin(generation):
            yield begin
        async for news in generation.read(keep_alive):
            made = b"".join([form.news(answer, pieces) for answer, pieces in news])
            if made or not news:
                yield made or form.alive
        yield form.end(generation)
    except (ApiError, HotsetError) as error:
        yield form.failed(as_api_error(error))


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + dump(data) + b"\n\n"
