"""Steps a model for many jobs: schedule, forward, hand out.

One thread at a time steps. That is the thread of a caller who waits, as long as every caller does: it has its
token without a change of threads, and those of others on the way. For requests that go on by themselves
(`Job.lasting`) there is a thread of the runner's own, as long as there are such::

    caller A   step step        step        whoever finds nobody stepping does it, for all
    caller B             step        wait
"""

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from hotset.backends.contract import F32
from hotset.core.batch import I32, Batch, Span, Work
from hotset.core.errors import BusyError, HotsetError, ModelError, RequestError
from hotset.model.finite import NotFiniteError
from hotset.model.transformer import SLICE
from hotset.serve.job import Job
from hotset.serve.loaded import Model
from hotset.serve.scheduler import FEW_ROWS, Pace, Want, schedule, share
from hotset.state.pool import Pool, Slot

_LONGEST_ADMITTING = 0.05
"""Seconds of a step after which no further request is begun in it."""

_SAVED_EVERY = 256
"""A sequence that cannot go back is saved at the end of steps, so many tokens apart, at its prompt's end, and
before that's last tokens: what follows on an answer has most of its prompt, but not always the end."""
_PROMPT_END = 32
"""So many tokens before; a prompt that is twice as long is cut there."""

_ROOM_FOR_ANSWER = 256
"""A request is begun when there is room for its prompt and so many tokens of its answer."""


class Runner:
    """A model, the room for its sequences, and all jobs that are waiting or running."""

    def __init__(self, model: Model, pool: Pool, *, vocab_size: int, parallel: int, queue: int) -> None:
        """At most `parallel` jobs are computed at the same time, and at most `queue` wait for that.

        Logits have `vocab_size` numbers, the model's first.
        """
        self._model = model
        self._pool = pool
        self._vocab_size = vocab_size
        self._parallel = parallel
        self._queue = queue
        self._pace = Pace()
        self._changed = threading.Condition()
        # Who steps owns the running jobs and the pool; all else, and these while nobody steps, need the lock.
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # the one that had no rows for longest first
        self._stepping = False
        self._news = False  # whether there may be something to do that the last step did not find
        self._thread: threading.Thread | None = None
        self._number = 0
        self._cancelled = False  # whether a job was, and is still there
        self._closed = False

    @property
    def running(self) -> int:
        """Jobs that are being computed."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting)

    def add(self, job: Job, *, bounded: bool = True) -> None:
        """Put a job in the queue. Raises `BusyError` where that is full, unless not `bounded`."""
        with self._changed:
            if self._closed:
                raise RequestError("this engine is closed")
            if bounded and sum(not job.cancelled for job in self._waiting) >= self._queue:
                raise BusyError(f"{self._queue} requests are waiting already: try again later")
            self._number += 1
            job.number = self._number
            self._waiting.append(job)
            if job.lasting:
                self._begin_thread()
            self._tell()

    def let_go_on(self, job: Job) -> None:
        """Have a job go on by itself from now on: its caller waits in no thread."""
        if not job.lasting:
            with self._changed:
                job.lasting = True
                if not (job.done or self._closed):
                    self._begin_thread()
                self._tell()

    def cancel(self, job: Job) -> None:
        """End a job; what it had is free as soon as no step is under way. May be called by any thread."""
        if job.done or job.cancelled:
            job.cancelled = True
            return
        with self._changed:
            job.cancelled = self._cancelled = True
            if not self._stepping:
                self._reap()
            self._tell()

    def was_read(self, job: Job) -> None:
        """A job's caller has read of it, so it may have to go on."""
        if not self._news and not job.lasting and not job.done:
            with self._changed:
                self._tell()

    def work(self, job: Job) -> list[Work | None]:
        """What each layer has chosen for a job's sequence so far, see `Model.work`."""
        with self._changed:
            return self._model.work(job.slot.sequence) if job.slot else job.work

    def wait(self, job: Job) -> None:
        """Return when there may be something new for a job's caller: step, unless another thread does."""
        with self._changed:
            while not job.ready:
                if self._stepping or self._closed or (self._news and self._thread):
                    self._changed.wait()
                elif self._news:
                    self._stepping = True
                    break
                elif all(other.thread == job.thread and not other.lasting for other in self._running):
                    raise BusyError(
                        f"this engine is busy: answers that were begun here hold all places "
                        f"({len(self._running)}); read one to its end or close it first"
                    )
                else:
                    self._changed.wait()  # until others have read what is theirs
            else:
                return
        self._step()

    def step(self) -> bool:
        """Compute one batch, after the one that another thread is at; False: there was nothing to do."""
        with self._changed:
            while self._stepping:
                self._changed.wait()
            self._stepping = True
        return self._step()

    def close(self) -> None:
        """End all jobs with an error and refuse new ones; waits for the step that is under way."""
        with self._changed:
            self._closed = True
            while self._stepping:
                self._changed.wait()
            thread = self._thread
            jobs = (*self._waiting, *self._running)
            for job in jobs:
                self._end(job, RequestError("this engine was closed"))
            self._pool.clear()
            self._tell()
        for job in jobs:
            if job.notify:
                self._notify(job, job.notify)
        if thread and thread is not threading.current_thread():
            thread.join()

    def _tell(self) -> None:
        """Something has changed that others may wait for; under the lock."""
        self._news = True
        self._changed.notify_all()

    def _begin_thread(self) -> None:
        """Have a thread of the runner's own; under the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hotset-engine", daemon=True)
            # A daemon thread inside native code must not outlive the interpreter.
            atexit.register(self.close)
            self._thread.start()

    def _work(self) -> None:
        """Step as long as there are jobs that go on by themselves."""
        try:
            self._work_on()
        except BaseException:  # this thread is being ended: others would wait for it forever
            with self._changed:
                jobs = (*self._waiting, *self._running)
                for job in jobs:
                    self._end(job, ModelError("the engine's thread was ended: ask again"), keep=False)
                self._leave()
            for job in jobs:
                if job.notify:
                    self._notify(job, job.notify)
            raise

    def _leave(self) -> None:
        """The runner's own thread goes; under the lock."""
        self._thread = None
        atexit.unregister(self.close)
        self._tell()

    def _work_on(self) -> None:
        while True:
            with self._changed:
                while self._stepping or not (self._news or self._closed):
                    self._changed.wait()
                lasting = any(job.lasting and not job.done for job in (*self._waiting, *self._running))
                if self._closed or not lasting:
                    self._leave()
                    return
                self._stepping = True
            self._step()

    def _step(self) -> bool:
        """One step, by the thread that has set `_stepping`."""
        start = time.perf_counter()
        self._news = False
        served: list[Job] = []
        try:
            if self._waiting:
                served = self._admit(start + _LONGEST_ADMITTING)
            served += self._compute(start)
        except Exception as error:  # no fault of the model's, which `_compute` takes: nobody may wait forever
            served = [*self._waiting, *self._running]
            for job in served:
                self._end(job, _failure(error), keep=False)
        finally:
            with self._changed:
                self._stepping = False
                if self._cancelled:
                    self._reap()
                if served:
                    self._news = True
                self._changed.notify_all()
        for job in served:
            if job.notify:
                self._notify(job, job.notify)
        return bool(served)

    def _notify(self, job: Job, notify: Callable[[], None]) -> None:
        try:
            notify()
        except Exception:  # its caller is gone, such as an event loop that was closed
            self.cancel(job)

    # What follows runs where nobody else steps.

    def _reap(self) -> None:
        """Forget the jobs that were cancelled."""
        self._cancelled = False
        for job in [job for job in (*self._waiting, *self._running) if job.cancelled]:
            self._end(job)

    def _end(self, job: Job, error: Exception | None = None, *, keep: bool = True) -> None:
        with self._changed:
            if job in self._running:
                self._running.remove(job)
            elif job in self._waiting:
                self._waiting.remove(job)
            slot, job.slot = job.slot, None
            if slot:
                job.work = self._model.work(slot.sequence)
                self._pool.give_back(slot, keep=keep)
            job.error = error
            job.done = True

    def _admit(self, until: float) -> list[Job]:
        """Begin the jobs that waited longest, as far as there is room and time; prefixes take some to copy.

        Those for which there will never be room are over, and returned.
        """
        refused: list[Job] = []
        for place, job in enumerate(tuple(self._waiting)):
            # The first is tried however late it is: a step that does nothing would be the last.
            if len(self._running) >= self._parallel or (place and time.perf_counter() > until):
                break
            if job.cancelled or (job.reuse and self._pool.is_coming(job.tokens)):
                continue
            positions = min(job.positions, len(job.tokens) + _ROOM_FOR_ANSWER)
            try:
                slot = self._pool.take(job.tokens, prompt=job.prompt, positions=positions, reuse=job.reuse)
            except MemoryError as error:
                self._end(job, RequestError(f"no memory for a sequence, ask for a smaller context: {error}"))
                refused.append(job)
                continue
            if slot is None:
                break
            job.slot = slot
            if not job.read:  # else it comes back, to what it has computed itself
                job.read = job.cached = min(slot.length, job.prompt)
            with self._changed:
                self._waiting.remove(job)
                self._running.append(job)
        return refused

    def _compute(self, start: float) -> list[Job]:
        """Compute one batch, of a step that began at `start`; the jobs that were in it."""
        jobs = [job for job in self._running if job.runnable]
        wants = [_want(job, self._pool.saves) for job in jobs]
        self._speculate(jobs, wants)
        answers = sum([want.rows for want in wants if not want.prompt])
        begun = time.perf_counter()
        rows = schedule(wants, prompt_rows=self._pace.prompt_rows(answers, begun - start), most_rows=SLICE)
        chosen = self._fitting([(job, count) for job, count in zip(jobs, rows, strict=True) if count])
        if not chosen:
            return []
        tokens, spans = zip(*[_span(job, count) for job, count in chosen], strict=True)
        batch = Batch(tokens[0] if len(tokens) == 1 else np.concatenate(tokens), spans)
        served = [job for job, _ in chosen]
        try:
            logits = self._model.transformer.forward(batch)
        except NotFiniteError as error:  # of one sequence: the others are computed again, without it
            spoilt = [job for job in served if job.slot and job.slot.sequence is error.sequence] or served
            drafts = {job for job, span in zip(served, spans, strict=True) if span.logits > 1}
            for job in spoilt:
                # What nobody has chosen is no fault: again, without a draft.
                if not (job in drafts and job.stop_drafting()):
                    self._end(job, _failure(error), keep=False)
            return spoilt
        except Exception as error:
            for job in served:
                self._end(job, _failure(error), keep=False)
            return served
        self._hand_out(batch, served, logits[:, : self._vocab_size])
        if len(served) < len(jobs):  # who had no rows is first in line
            with self._changed:
                last = [job for job in served if not job.done]
                self._running = [job for job in self._running if job not in last] + last
        now = sum([count for want, count in zip(wants, rows, strict=True) if not want.prompt])
        self._pace.observe(now, len(batch.tokens) - now, time.perf_counter() - begun)
        return served

    def _speculate(self, jobs: list[Job], wants: list[Want]) -> None:
        """Want rows for drafts too, behind those of answers, where that pays and there is room anyway."""
        answering = [i for i, want in enumerate(wants) if not want.prompt]
        if len(answering) >= FEW_ROWS:
            return
        counts = share([jobs[i].chances() for i in answering], self._pace.cost_ratio)
        for i, count in zip(answering, counts, strict=True):
            slot = jobs[i].slot
            if count and slot and self._pool.grow(slot, slot.known + count):
                jobs[i].draft(count)
                wants[i] = Want(1 + count, prompt=False)

    def _fitting(self, chosen: list[tuple[Job, int]]) -> list[tuple[Job, int]]:
        """Those for whose rows there is room; the requests that came last make way for others."""
        for job, count in sorted(chosen, key=_number) if len(chosen) > 1 else chosen:
            while job.slot and not self._pool.grow(job.slot, job.slot.length + count):
                self._make_way(max(self._running, key=lambda job: job.number))
        return [(job, count) for job, count in chosen if job.slot]

    def _make_way(self, job: Job) -> None:
        """Send a job back to the queue; what it has computed is read again later, if need be."""
        slot, job.slot = job.slot, None
        if slot:
            job.tokens = slot.tokens[: slot.known].copy()
            self._pool.give_back(slot)
        with self._changed:
            self._running.remove(job)
            self._waiting.appendleft(job)

    def _hand_out(self, batch: Batch, jobs: list[Job], logits: F32) -> None:
        """Give each job the logits that it wanted."""
        start = 0
        for job, span in zip(jobs, batch.spans, strict=True):
            end = start + span.logits
            job.read = min(max(job.read, span.sequence.length), job.prompt)
            over = False
            if start < end or span.hidden is not None:
                try:
                    over = job.accept(logits[start:end])
                except Exception as error:
                    self._end(job, _failure(error))
            if self._pool.saves and job.slot:
                self._save(job.slot, job.prompt)
            if over:
                self._end(job)
            start = end

    def _save(self, slot: Slot, prompt: int) -> None:
        """Save where others will begin."""
        at_end = slot.length in (prompt, prompt - _PROMPT_END)
        if at_end or slot.length >= slot.saved + _SAVED_EVERY:
            self._pool.save(slot)


def _number(chosen: tuple[Job, int]) -> int:
    return chosen[0].number


def _want(job: Job, saves: bool) -> Want:
    slot = job.slot
    assert slot is not None
    if slot.left <= 0:  # an interrupted step lost the logits of the last token
        slot.sequence.rewind(slot.sequence.reusable(slot.known - 1))
    length = slot.length
    if length < job.prompt:
        if saves and job.prompt - length > 2 * _PROMPT_END:
            return Want(job.prompt - _PROMPT_END - length, prompt=True)
        return Want(job.prompt - length, prompt=True)
    return Want(slot.known - length, prompt=slot.known - length > 1)


def _span(job: Job, count: int) -> tuple[I32, Span]:
    """The job's next tokens, and their place."""
    slot = job.slot
    assert slot is not None
    start = slot.length
    tokens = slot.tokens[start : start + count]
    return tokens, Span(slot.sequence, count, start < job.prompt, job.logits(count), job.hidden(start, count))


def _failure(error: Exception) -> HotsetError:
    """What a caller is told, in one line and an exception of its own."""
    if isinstance(error, RequestError | ModelError):
        return type(error)(str(error))
    if isinstance(error, HotsetError):  # such as of a GPU without memory: no fault of the request's
        return ModelError(str(error))
    failure = ModelError(f"the model failed: {type(error).__name__}: {' '.join(str(error).split())}")
    failure.__cause__ = error
    return failure
