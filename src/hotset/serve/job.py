"""What an engine computes for one caller: an answer, or the logits of a text.

The thread that steps the engine fills a job, its caller's thread empties it.
"""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hotset.backends.contract import F32
from hotset.core.batch import I32, Work
from hotset.serve.constraint import Enforcer
from hotset.serve.draft import Drafter
from hotset.serve.request import FinishReason, Request, StopStrings, Token
from hotset.serve.sampler import Sampler, logprobs
from hotset.state.pool import Slot

if TYPE_CHECKING:
    from hotset.tokenizer import Tokenizer

RUN_AHEAD = 4
"""An answer that its caller does not read takes part in no step while so many tokens of it are there."""


class Job(ABC):
    """Tokens to be computed, and what became of it."""

    def __init__(self, tokens: I32, positions: int, *, reuse: bool = True) -> None:
        """Tokens (T,) of a prompt; with the answer there may be `positions`. `reuse`: see `Pool.take`."""
        self.tokens = tokens
        self.prompt = len(tokens)
        self.positions = positions
        self.reuse = reuse
        self.slot: Slot | None = None
        """Its sequence, from when it is begun."""
        self.number = 0
        """Requests are numbered as they come."""
        self.lasting = False
        """It goes on whether or not its caller waits."""
        self.thread = threading.get_ident()
        """Who read it last."""
        self.out: deque[Token] = deque()
        """What its caller has not read."""
        self.notify: Callable[[], None] | None = None
        """Called when there is something new for the caller, by the thread that made it."""
        self.cached = 0
        """Tokens of the prompt that were not computed, as another sequence had them."""
        self.read = 0
        """Tokens of the prompt that are computed or cached."""
        self.drafted = 0
        """Tokens of drafts that were verified."""
        self.accepted = 0
        """Of these, tokens that the model chose."""
        self.work: list[Work | None] = []
        """What layers had chosen for its sequence, once that is given back."""
        self.cancelled = False
        self.done = False
        """Nothing more will come."""
        self.error: Exception | None = None
        """Why it ended too early; set before `done`."""

    @property
    def runnable(self) -> bool:
        """Whether it goes on by itself."""
        return self.lasting or len(self.out) < RUN_AHEAD

    @property
    def ready(self) -> bool:
        """Whether there is something for the caller."""
        return bool(self.out) or self.done

    @abstractmethod
    def logits(self, rows: int) -> int:
        """For how many of the next rows it wants logits."""

    def hidden(self, start: int, rows: int) -> F32 | None:
        """Where to write hidden vectors of the `rows` next tokens, from `start` on (`Span.hidden`)."""
        return None

    def chances(self) -> list[float]:
        """How likely the first, the first two … tokens of a draft are all right; empty: there is none."""
        return []

    def draft(self, count: int) -> None:
        """Write so many tokens of the draft, as far as it has `chances`, after those that are known."""
        assert count == 0

    def stop_drafting(self) -> bool:
        """Have no more drafts; whether it had any."""
        return False

    @abstractmethod
    def accept(self, logits: F32) -> bool:
        """Take the logits (R, V) that it wanted; True: that was all."""

    def take(self) -> Token | None:
        """The next token for the caller; None: there is none yet, or all were given.

        Raises, once, the error that ended the job too early.
        """
        done = self.done  # before looking: what comes after is seen next time
        if self.out:
            return self.out.popleft()
        if done and self.error:
            error, self.error = self.error, None
            raise error
        return None


class Answer(Job):
    """Chooses tokens, one after the other, until one of the request's ends."""

    def __init__(
        self,
        request: Request,
        max_tokens: int,
        tokenizer: "Tokenizer",
        vocab_size: int,
        *,
        speculate: bool = False,
    ) -> None:
        prompt = np.array(request.prompt, np.int32)
        super().__init__(prompt, len(prompt) + max_tokens - 1)  # the last token is never computed
        self._sampler = Sampler(request.sampling, vocab_size, request.prompt, tokenizer.suppressed)
        self._logprobs = request.sampling.logprobs
        self._ends = tokenizer.end_ids
        self._text = tokenizer.stream(request.shown) if request.shown else tokenizer.stream()
        constraint = request.constraint
        self._enforcer = Enforcer(constraint, tokenizer, request.prompt) if constraint else None
        self._stops = StopStrings(request.stop)
        self._left = max_tokens
        self._drafter = Drafter() if speculate else None

    def logits(self, rows: int) -> int:
        """Those after the last known token, and after each of a draft."""
        return 0 if self.slot is None else max(0, rows - self.slot.left + 1)

    def chances(self) -> list[float]:
        slot = self.slot
        if self._drafter is None or slot is None:
            return []
        # The last token is never computed; and what is no draft takes one position.
        most = min(self._left, slot.sequence.undoable) - 1
        return self._drafter.chances(slot.tokens[: slot.known], most)

    def draft(self, count: int) -> None:
        if self._drafter and self.slot:
            self.slot.draft(self._drafter.draft(self.slot.tokens[: self.slot.known], count))
            self.drafted += count

    def stop_drafting(self) -> bool:
        drafted, self._drafter = self._drafter is not None, None
        return drafted

    def accept(self, logits: F32) -> bool:
        """The rows after the first are a draft's, and count as far as that is what is chosen."""
        for i, row in enumerate(logits):
            self.accepted += i > 0
            if self._choose(row):
                return True
            if self.slot is None or self.slot.left > 0:
                break
        return False

    def _choose(self, row: F32) -> bool:
        """Choose a token by its logits (V,); True: it was the last."""
        allowed = self._enforcer.allowed(len(row)) if self._enforcer else None
        token = self._sampler.sample(row, allowed)
        self._left -= 1
        ended = token in self._ends
        complete = self._enforcer is not None and not ended and self._enforcer.accept(token)
        piece = self._stops.push("" if ended else self._text.push(token))
        reason: FinishReason | None = None
        if self._left == 0 or ended or complete or self._stops.stopped:
            piece += self._stops.push(self._text.flush()) + self._stops.flush()
            reason = "stop" if ended or complete or self._stops.stopped else "length"
        elif self.slot:
            if self._drafter:
                self._drafter.see(self.slot.tokens[: self.slot.known], token)
            self.slot.append(token)
        wanted = self._logprobs
        probable = None if wanted is None else logprobs(row, token, wanted)
        self.out.append(Token(token, piece, probable, reason, self._stops.found))
        return reason is not None


class Score(Job):
    """Keeps the logits of every token of a text."""

    def __init__(self, tokens: I32, vocab_size: int) -> None:
        super().__init__(tokens, len(tokens), reuse=False)
        self.scores = np.empty((len(tokens), vocab_size), np.float32)
        """(T, V), filled from the front."""

    def logits(self, rows: int) -> int:
        return rows

    def accept(self, logits: F32) -> bool:
        slot = self.slot
        if slot is None:
            return True
        self.scores[slot.length - len(logits) : slot.length] = logits
        return slot.left == 0
