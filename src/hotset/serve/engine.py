"""One model answering requests, one after the other.

Knows nothing of files, terminals or how a model computes. A request goes: text to ids, the ids' logits, and
then, token by token, a choice, its text, and its logits.
"""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from hotset.backends.contract import F32
from hotset.core.batch import Batch, Work
from hotset.core.batch import Sequence as State
from hotset.core.config import Way
from hotset.core.errors import RequestError
from hotset.formats.overrides import Overrides
from hotset.model.transformer import SLICE
from hotset.serve.load import Progress, load_model
from hotset.serve.loaded import Model
from hotset.serve.request import FinishReason, Request, StopStrings, Token, check_stop
from hotset.serve.sampler import Sampler, Sampling, logprobs

_GREEDY = Sampling()


class Engine:
    """A model, one sequence and the tokens in it.

    What a request has in common with the start of the one before is not computed again. An engine serves one
    request at a time: to start another while one is unfinished is a `RequestError`, from whatever thread.
    """

    def __init__(self, model: Model, state: State) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.state = state
        # A matrix may have more rows than the tokenizer has tokens: padding, never to be chosen.
        self._vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size)
        # The first state.length of these are in the cache; an interrupted call may leave more of them.
        self._ids: list[int] = []
        self._busy = Lock()

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
        overrides: Overrides | None = None,
        progress: Progress | None = None,
    ) -> "Engine":
        """Load a model and make room for a context.

        `model` is a path, a name on the hub, such as ``hf:org/repo:Q4_K_M``, or None for the demo model.
        `threads` None means one a physical core. `context` is in tokens; 0 means what the model was trained
        for, None the same but at most 4096.
        `kv_type` is ``f16``, ``q8_0`` or ``f32``. `ffn` (dense, exact) replaces the file's plan for layers
        stored by neuron. `vram` is how many bytes may lie on the GPU; None: all is the CPU's.
        `overrides` are values to put in the place of the file's metadata (`hotset.serve.load.open_model`).
        `progress(done, total)` is told of the model's parts.
        Raises `HotsetError`.
        """
        loaded = load_model(
            model,
            overrides=overrides,
            threads=threads,
            ffn=ffn,
            vram=vram,
            context=context,
            kv_type=kv_type,
            progress=progress,
        )
        return cls(loaded, loaded.sequence(context, kv_type))

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.state.capacity

    def work(self) -> list[Work | None]:
        """What each layer has chosen for the sequence so far, see `Model.work`."""
        return self.model.work(self.state)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Generator[Token, None, None]:
        """Continue a text, or token ids as they are; an iterator of tokens.

        The answer ends with the model's end token, before the first of the `stop` strings, after
        `max_tokens`, or when the context is full; its last token has the reason. `progress(done, total)` is
        told of the prompt's tokens while they are read, without those still in the cache. Raises
        `RequestError` at once for a request that cannot be served.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self._start(ids, max_tokens, sampling, stop, progress)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Generator[Token, None, None]:
        """Answer `messages`, each with a ``role`` and ``content``, by the model's chat template.

        `tools` are JSON schemas of functions that the model may call; `template_variables` go to the template
        as they are, such as ``{"enable_thinking": False}``. Otherwise as `generate`.
        """
        ids = self.tokenizer.encode_chat(messages, tools=tools, **(template_variables or {}))
        return self._start(ids, max_tokens, sampling, stop, progress)

    def _start(
        self,
        prompt: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling,
        stop: Sequence[str],
        progress: Progress | None,
    ) -> Generator[Token, None, None]:
        """Check what only the engine can, that the tokens exist and that the context has room; then go."""
        ids = tuple(int(token) for token in prompt)
        vocab_size = self._vocab_size
        if not ids:
            raise RequestError("the prompt is empty: expected at least one token")
        for token in ids:
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"the prompt holds token {token}: this model has tokens 0 to {vocab_size - 1}"
                )
        if max_tokens is not None and max_tokens < 1:
            raise RequestError(f"max_tokens is {max_tokens}: expected 1 or more")
        room = self.context - len(ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but the context has room for {self.context}, with at "
                "least one of the answer: shorten the prompt or ask for more room (--context)"
            )
        request = Request(ids, min(max_tokens or room, room), sampling, check_stop(stop))
        return self._stream(request, Sampler(sampling, vocab_size, ids), progress)

    def _stream(
        self, request: Request, sampler: Sampler, progress: Progress | None
    ) -> Generator[Token, None, None]:
        if not self._busy.acquire(blocking=False):
            raise RequestError("this engine is busy with another request: finish or close that one first")
        try:
            text = self.tokenizer.stream()
            stops = StopStrings(request.stop)
            logits = self._prefill(request.prompt, progress)
            for left in range(request.max_tokens - 1, -1, -1):
                token = sampler.sample(logits)
                ended = token in self.tokenizer.end_ids
                piece = stops.push("" if ended else text.push(token))
                reason: FinishReason | None = None
                if left == 0 or ended or stops.stopped:
                    piece += stops.push(text.flush()) + stops.flush()
                    reason = "stop" if ended or stops.stopped else "length"
                wanted = request.sampling.logprobs
                yield Token(token, piece, None if wanted is None else logprobs(logits, token, wanted), reason)
                if reason:
                    return
                logits = self._extend([token])
        finally:
            self._busy.release()

    def _prefill(self, prompt: Sequence[int], progress: Progress | None) -> F32:
        """The logits (V,) after the prompt, computing only what the cache does not hold."""
        cached = self._ids[: self.state.length]
        # The last token is always computed: its logits are wanted, and the cache has none.
        limit = min(len(cached), len(prompt) - 1)
        common = next((i for i in range(limit) if cached[i] != prompt[i]), limit)
        self.state.rewind(common)
        del self._ids[common:]
        rest = prompt[common:]
        if progress is None:
            return self._extend(rest, prompt=True)
        progress(0, len(rest))
        for start in range(0, len(rest), SLICE):
            logits = self._extend(rest[start : start + SLICE], prompt=True)
            progress(min(start + SLICE, len(rest)), len(rest))
        return logits

    def _extend(self, ids: Sequence[int], prompt: bool = False) -> F32:
        """Append tokens to the cache: the logits (V,) after the last."""
        # Tokens that an interrupted call left behind never reached the cache.
        self._ids[self.state.length :] = ids
        logits = self.model.transformer.forward(
            Batch.of(self.state, np.array(ids, np.int32), lossless=prompt)
        )
        return logits[0, : self._vocab_size]
