"""The answers to one request: the engine's tokens, as they come, for one coroutine."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from hotset.serve.engine import Engine
from hotset.serve.request import Request, Token
from hotset.serve.stream import Stream
from hotset.server.answers import Answer, Piece
from hotset.server.errors import as_api_error

_CADENCE = 0.025
"""Seconds between two looks at a quick model's tokens: each costs the threads that compute."""


class Wake:
    """Lets any thread wake one coroutine; costs almost nothing while that does not wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._armed = False
        self._future: asyncio.Future[None] | None = None

    def __call__(self) -> None:
        """There is something new. Called by the engine's thread."""
        if self._armed:
            self._armed = False
            self._loop.call_soon_threadsafe(self._wake)

    def arm(self) -> None:
        """Look once more for news after this, and then wait."""
        self._future = self._loop.create_future()
        self._armed = True

    async def wait(self, seconds: float | None) -> None:
        """Until there is something new, or for some seconds."""
        timer = None if seconds is None else self._loop.call_later(seconds, self._wake)
        try:
            assert self._future is not None
            await self._future
        finally:
            self._armed = False
            if timer:
                timer.cancel()

    def _wake(self) -> None:
        if self._future and not self._future.done():
            self._future.set_result(None)


@dataclass(frozen=True)
class Usage:
    """Tokens of all answers to a request."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt, not computed."""
    answer: int = 0
    reasoning: int = 0
    """Of the answer."""
    drafted: int = 0
    """Tokens computed before it was known whether they are the answer's; no part of the others."""
    accepted: int = 0
    """Of the drafted."""

    @property
    def total(self) -> int:
        """Prompt and answers."""
        return self.prompt + self.answer


class Generation:
    """Runs a request's answers. Close it, and nothing of it goes on."""

    def __init__(
        self,
        engine: Engine,
        prompts: list[Request],
        choices: int,
        answer: Callable[[int], Answer],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Begin `choices` answers to each prompt. Raises `RequestError`, and `BusyError` where too many wait.

        Seeds differ from choice to choice, and the first has the request's own. It is read in `loop`.
        """
        self.begun = time.perf_counter()
        self.first: float | None = None
        """Seconds to the first token."""
        self.ended: float | None = None
        """Seconds to the last token."""
        self.answers: list[Answer] = []
        self._choices = choices
        self._wake = Wake(loop)
        self._streams: list[Stream] = []
        try:
            for request in prompts:
                for choice in range(choices):
                    self._streams.append(engine.submit(_another(request, choice), self._wake))
                    self.answers.append(answer(len(self.answers)))
        except BaseException:
            self.close()
            raise

    @property
    def usage(self) -> Usage:
        """What was used so far; a prompt counts once."""
        firsts = self._streams[:: self._choices]
        return Usage(
            sum(stream.prompt_tokens for stream in firsts),
            sum(stream.cached_tokens for stream in firsts),
            sum(answer.tokens for answer in self.answers),
            sum(answer.reasoning_tokens for answer in self.answers),
            sum(stream.drafted_tokens for stream in self._streams),
            sum(stream.accepted_tokens for stream in self._streams),
        )

    async def read(self, patience: float | None = None) -> AsyncIterator[list[tuple[Answer, list[Piece]]]]:
        """What is new of the answers, until all are over; nothing, whenever `patience` seconds have passed.

        Raises `ApiError` where an answer ended too early.
        """
        looked = 0.0
        while True:
            self._wake.arm()
            news = self._poll()
            if news:
                looked = time.perf_counter()
                yield news
            if all(answer.finish_reason for answer in self.answers):
                return
            if news:
                await asyncio.sleep(max(0.0, _CADENCE - (time.perf_counter() - looked)))
                continue
            waiting = time.perf_counter()
            await self._wake.wait(patience)
            if patience is not None and time.perf_counter() - waiting >= patience:
                yield []

    async def whole(self) -> list[Answer]:
        """The answers, once they are over."""
        async for _ in self.read():
            pass
        return self.answers

    def close(self) -> None:
        """End what is not over."""
        for stream in self._streams:
            stream.cancel()

    def _poll(self) -> list[tuple[Answer, list[Piece]]]:
        news = []
        for stream, answer in zip(self._streams, self.answers, strict=True):
            if answer.finish_reason:
                continue
            try:
                tokens: list[Token] = stream.poll()
            except Exception as error:
                raise as_api_error(error) from error
            if tokens:
                self._note()
                news.append((answer, answer.read(tokens)))
                if answer.finish_reason:
                    stream.cancel()
        return news

    def _note(self) -> None:
        self.ended = time.perf_counter() - self.begun
        if self.first is None:
            self.first = self.ended


def _another(request: Request, choice: int) -> Request:
    seed = request.sampling.seed
    if not choice or seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed + choice))
