"""A model answering requests, several at the same time.

Knows nothing of files, terminals or how a model computes. A request goes: text to ids, their logits, and
then, token by token, a choice, its text, and its logits. `hotset.serve.runner` says which thread does that.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast, overload

import numpy as np

from hotset.backends.contract import F32
from hotset.core.batch import I32
from hotset.core.config import Way
from hotset.core.errors import RequestError
from hotset.formats.overrides import Overrides
from hotset.serve.arguments import check_load, check_messages, token_ids
from hotset.serve.constraint import Constraint
from hotset.serve.embed import Embed, Embedding, check_embeds
from hotset.serve.job import Answer, Score
from hotset.serve.load import Progress, load_model
from hotset.serve.loaded import Model
from hotset.serve.request import Request, check_stop
from hotset.serve.room import check_parallel, make_pool
from hotset.serve.runner import Runner
from hotset.serve.sampler import Sampling
from hotset.serve.stream import Stream

_GREEDY = Sampling()

QUEUE = 64
"""Requests that may wait for their turn."""


class Engine:
    """A model, room for its sequences, and the requests that it answers at the same time.

    Each request has the same answer whatever runs beside it or ran before. What its prompt has in common with
    the beginning of others, now or recently, is copied and not computed again. Any thread may ask; an engine
    computes in one of the threads that wait for it, or where requests were submitted, in one of its own.
    """

    def __init__(
        self,
        model: Model,
        *,
        context: int | None = None,
        kv_type: str = "f16",
        parallel: int | None = None,
        kv_room: int | None = None,
        queue: int = QUEUE,
        speculate: bool = True,
    ) -> None:
        """As for `load`. Raises `RequestError`."""
        self.model = model
        self.tokenizer = model.tokenizer
        # A matrix may have more rows than the tokenizer has tokens: padding, never to be chosen.
        self._vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size)
        # On a GPU a row's last bits depend on how many there are, and one row's step is recorded.
        self._speculate = speculate and model.plan is None
        parallel = check_parallel(model, parallel)
        self._pool = make_pool(model, context, kv_type, parallel, kv_room)
        self._runner = Runner(model, self._pool, vocab_size=self._vocab_size, parallel=parallel, queue=queue)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        threads: int | None = None,
        context: int | None = None,
        kv_type: str = "f16",
        ffn: Way | None = None,
        vram: int | None = None,
        ram: int | None = None,
        parallel: int | None = None,
        kv_room: int | None = None,
        queue: int = QUEUE,
        speculate: bool = True,
        overrides: Overrides | None = None,
        progress: Progress | None = None,
    ) -> "Engine":
        """Load a model and make room for its sequences.

        `model` is a path, a name on the hub, such as ``hf:org/repo:Q4_K_M``, or None for the demo model.
        `threads` None means one a physical core. `context` is in tokens, for each request; 0 means what the
        model was trained for, None the same but at most 4096. `kv_type` is ``f16``, ``q8_0`` or ``f32``.
        `ffn` (dense, exact) replaces the file's plan for layers stored by neuron. `vram` is how many bytes
        may lie on the GPU; None: all is the CPU's. `ram` is how many bytes the experts of mixtures may take
        in main memory: the coldest are given back to the file; None: as many as there are.
        `parallel` requests are computed at the same time; None: 8, or 1 with `vram`. `kv_room` is how many
        bytes their keys and values may take, and those that are kept for requests that begin in the same
        way; None: as many as `parallel` contexts, but no more than half of the free memory, and one context.
        With `vram` it is at most that of `parallel` contexts, for which the GPU has room.
        `queue` requests may wait for their turn.
        `speculate` lets a step compute several tokens of an answer, where the request's own text says how it
        may go on; answers are the same, and with `vram` there is none of it.
        `overrides` are values to put in place of the file's metadata (`hotset.serve.load.open_model`).
        `progress(done, total)` is told of the model's parts. Raises `HotsetError`.
        """
        check_load(
            model,
            kv_type=kv_type,
            ffn=ffn,
            threads=threads,
            context=context,
            vram=vram,
            ram=ram,
            parallel=parallel,
            kv_room=kv_room,
            queue=queue,
        )
        loaded = load_model(
            model,
            overrides=overrides,
            threads=threads,
            ffn=ffn,
            vram=vram,
            ram=ram,
            context=context,
            kv_type=kv_type,
            parallel=parallel or 1,
            progress=progress,
        )
        return cls(
            loaded,
            context=context,
            kv_type=kv_type,
            parallel=parallel,
            kv_room=kv_room,
            queue=queue,
            speculate=speculate,
        )

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._pool.capacity

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return self._runner.running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._runner.waiting

    def submit(self, request: Request, notify: Callable[[], None] | None = None) -> Stream:
        """Begin to answer a request, which then goes on by itself; its tokens are in the stream.

        May be called by any thread. `notify` is called by the engine's thread, which it must not hold up,
        whenever there is something new to `Stream.poll`. Raises `RequestError` at once for a request that
        cannot be served, and `BusyError` where too many wait.
        """
        job = self._answer(request)
        job.notify = notify
        job.lasting = True
        self._runner.add(job)
        return Stream(job, self._runner)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
        shown: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Stream:
        """Continue a text, or token ids as they are; an iterator of tokens, which computes while it is read.

        The answer ends with the model's end token, before the first of the `stop` strings, after
        `max_tokens`, or when the context is full; its last token has the reason. `constraint` says what the
        answer may be; `shown` are the marks that a parser of the reply needs (`hotset.serve.reply`).
        `progress(done, total)` is told of the prompt's tokens while they are read, without those that another
        request has read. Raises `RequestError` at once for a request that cannot be served, and `BusyError`
        where too many wait.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self._start(ids, progress, max_tokens, sampling, stop, constraint, shown)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        constraint: Constraint | None = None,
        progress: Progress | None = None,
    ) -> Stream:
        """Answer `messages`, each with a ``role`` and ``content``, by the model's chat template.

        `tools` are JSON schemas of functions that the model may call; `template_variables` go to the template
        as they are, such as ``{"enable_thinking": False}``. Otherwise as `generate`.
        """
        check_messages(messages, tools, template_variables)
        ids = self.tokenizer.encode_chat(messages, **{"tools": tools, **(template_variables or {})})
        return self._start(ids, progress, max_tokens, sampling, stop, constraint)

    @overload
    def score(self, ids: Sequence[int] | I32) -> F32: ...
    @overload
    def score(self, ids: Sequence[Sequence[int]]) -> list[F32]: ...
    def score(self, ids: Sequence[int] | I32 | Sequence[Sequence[int]]) -> F32 | list[F32]:
        """The logits (T, V) after each token of a text, all neurons computed; of several texts, a list.

        Several texts are read together. Raises `RequestError` for one that does not fit the context.
        """
        if len(ids) and isinstance(ids[0], (int, np.integer)):
            return self._scores([cast(Sequence[int], ids)])[0]
        return self._scores(cast(Sequence[Sequence[int]], ids))

    def embed(self, prompt: str | Sequence[int]) -> Embedding:
        """The vector of a text, or of token ids as they are: `Embedding.result` waits for it.

        It is made as the model's file says: the mean of all tokens' last hidden vectors, or the last token's,
        divided by its length. Raises `UnsupportedError` where the file says neither.
        """
        pooling = check_embeds(self.model)
        ids = self.tokenizer.encode(prompt, add_end=True) if isinstance(prompt, str) else token_ids(prompt)
        self._check_text(ids)
        job = Embed(np.array(ids, np.int32), pooling, self.model.config.hidden_size)
        job.lasting = True
        self._runner.add(job)
        return Embedding(job, self._runner)

    def step(self) -> bool:
        """Compute the next batch in this thread; False: there was nothing to do.

        Engines step by themselves where somebody waits for a token; this is for those who poll.
        """
        return self._runner.step()

    def close(self) -> None:
        """End all requests with a `RequestError`, and refuse new ones."""
        self._runner.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(
        self,
        prompt: Sequence[int],
        progress: Progress | None,
        max_tokens: int | None,
        sampling: Sampling,
        stop: Sequence[str],
        constraint: Constraint | None,
        shown: Sequence[str] = (),
    ) -> Stream:
        ids = token_ids(prompt)
        job = self._answer(Request(ids, max_tokens, sampling, check_stop(stop), constraint, tuple(shown)))
        self._runner.add(job)
        return Stream(job, self._runner, progress)

    def _answer(self, request: Request) -> Answer:
        """Check what only the engine can, that the tokens exist and that the context has room."""
        self._check_tokens(request.prompt)
        if request.max_tokens is not None and request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens}: expected 1 or more")
        room = self.context - len(request.prompt)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(request.prompt)} tokens, but the context has room for {self.context}, "
                "with at least one of the answer: shorten the prompt or ask for more room (--context)"
            )
        return Answer(
            request,
            min(request.max_tokens or room, room),
            self.tokenizer,
            self._vocab_size,
            speculate=request.speculate and self._speculate,
        )

    def _scores(self, texts: Sequence[Sequence[int]]) -> list[F32]:
        jobs = []
        for text in texts:
            self._check_text(text)
            jobs.append(Score(np.array(text, np.int32), self._vocab_size))
        try:
            for job in jobs:
                self._runner.add(job, bounded=False)
            for job in jobs:
                while not job.done:
                    self._runner.wait(job)
                job.take()  # raises what ended it too early
        finally:
            for job in jobs:
                self._runner.cancel(job)
        return [job.scores for job in jobs]

    def _check_text(self, tokens: Sequence[int]) -> None:
        self._check_tokens(tokens)
        if len(tokens) > self.context:
            raise RequestError(
                f"a text has {len(tokens)} tokens, but the context has room for {self.context}: shorten it "
                "or ask for more room (--context)"
            )

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not len(tokens):
            raise RequestError("the prompt is empty: expected at least one token")
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                raise RequestError(
                    f"the prompt holds token {token}: this model has tokens 0 to {self._vocab_size - 1}"
                )
