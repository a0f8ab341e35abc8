"""What a caller holds of its request: the tokens as they come, by thread, by event loop or by hand."""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from hotset.core.batch import Work
from hotset.serve.job import Job
from hotset.serve.request import Token

if TYPE_CHECKING:
    from hotset.serve.runner import Runner


class Stream(Iterator[Token]):
    """The tokens of one answer; for one reader at a time.

    Read it with ``for``, with ``async for``, or by `poll` whenever ``notify`` is called. An answer that ended
    too early raises its error after its last token. One that is cancelled, closed or dropped stops at once,
    whether it waits, reads its prompt or answers, and gives no more tokens.
    """

    def __init__(
        self, job: Job, runner: "Runner", progress: Callable[[int, int], None] | None = None
    ) -> None:
        """`progress(done, total)` is told of the prompt's tokens that are computed, as the stream is read."""
        self._job = job
        self._runner = runner
        self._progress = progress
        self._wake: Callable[[], None] | None = None
        """Wakes the coroutine that waits for the next token."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self._job.prompt

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed, as an earlier request had them."""
        return self._job.cached

    @property
    def read_tokens(self) -> int:
        """Tokens of the prompt that are computed or cached so far."""
        return self._job.read

    @property
    def drafted_tokens(self) -> int:
        """Tokens of the answer that were computed before it was known whether they are right."""
        return self._job.drafted

    @property
    def accepted_tokens(self) -> int:
        """Those of them that were right: the answer took so many steps less."""
        return self._job.accepted

    def work(self) -> list[Work | None]:
        """What each layer has chosen for the sequence so far; a difference says what was in between.

        Earlier requests may have used the sequence. Empty before the request is begun.
        """
        return self._runner.work(self._job)

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come: all were given, or it was cancelled."""
        job = self._job
        return job.cancelled or (job.done and not job.out and job.error is None)

    def __next__(self) -> Token:
        """Wait for the next token. Without other requests the calling thread computes it."""
        job = self._job
        job.thread = threading.get_ident()
        token = None
        while token is None and not self.finished:
            try:
                if (token := job.take()) is None:
                    self._tell_progress()
                    self._runner.wait(job)
            except BaseException:
                self.cancel()
                raise
        self._tell_progress()
        if token is None or job.cancelled:
            raise StopIteration
        self._runner.was_read(job)
        return token

    def poll(self) -> list[Token]:
        """The tokens that are there, without waiting; none yet, or none any more: see `finished`.

        Raises, once, the error that ended the answer too early.
        """
        tokens: list[Token] = []
        while not self._job.cancelled and (self._job.out or not tokens) and (token := self._job.take()):
            tokens.append(token)
        self._runner.was_read(self._job)
        return tokens

    def cancel(self) -> None:
        """End the request, from any thread and at any stage."""
        self._runner.cancel(self._job)
        if wake := self._wake:
            wake()

    def close(self) -> None:
        """The same as `cancel`."""
        self.cancel()

    def __del__(self) -> None:
        """Nobody can read it any more."""
        self._runner.cancel(self._job)

    def _tell_progress(self) -> None:
        job = self._job
        if self._progress:
            self._progress(job.read - job.cached, job.prompt - job.cached)
            if job.read == job.prompt:
                self._progress = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Token:
        """Wait for the next token without holding up the event loop. Takes the place of ``notify``.

        From then on the answer goes on by itself.
        """
        import asyncio

        job, loop, news = self._job, asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            loop.call_soon_threadsafe(news.set)

        job.notify = self._wake = notify
        self._runner.let_go_on(job)
        try:
            while not self.finished:
                if token := job.take():
                    return token
                await news.wait()
                news.clear()
        finally:
            self._wake = None
        raise StopAsyncIteration
