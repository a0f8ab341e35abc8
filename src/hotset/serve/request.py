"""What one generation asks for and gives back. Knows nothing of models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hotset.core.errors import RequestError
from hotset.serve.arguments import check_integer, check_type
from hotset.serve.constraint import Constraint
from hotset.serve.sampler import Logprobs, Sampling

FinishReason = Literal["stop", "length"]
"""``stop``: the model ended its answer or wrote a stop string; ``length``: no room for more tokens."""


@dataclass(frozen=True)
class Request:
    """A prompt in token ids, and how to answer it. A `stop` that is no text is a `RequestError`."""

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    """None: when the context is full."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    constraint: Constraint | None = None
    """What the answer may be."""
    shown: tuple[str, ...] = ()
    """Marks that stand in the text even where they are control tokens: those of a parser of the reply."""
    speculate: bool = True
    """Several tokens may be computed at once where the request's own text says how it may go on; the answer
    is the same (docs/how/engine.md)."""

    def __post_init__(self) -> None:
        """Check every value, but for what the model knows."""
        check_integer("max_tokens", self.max_tokens, optional=True)
        check_type("sampling", self.sampling, Sampling, "a Sampling")
        check_stop(self.stop)
        check_type("speculate", self.speculate, bool, "True or False")
        if self.constraint is not None:
            check_type("constraint", self.constraint, Constraint, "a Constraint")


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. The last of an answer has a finish reason, and may be the model's end token."""

    id: int
    text: str
    """Text certain with this token: empty within a character, or while a stop string may be forming."""
    logprobs: Logprobs | None = None
    """Given when `Sampling.logprobs` asks for them."""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended the answer."""


class StopStrings:
    """Cuts streamed text before the stop string that is completed first; of several, before the longest.

    Text that may be the beginning of a stop string is held back, so the result does not depend on where the
    text is split into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found: str | None = None
        """The stop string that was found; everything pushed from then on is dropped."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def push(self, piece: str) -> str:
        """Take the next piece of text, give what is certain to stand before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self.found, self._held = text[start:end], ""
            return text[:start]
        keep = min(self._longest - 1, len(text))
        while keep > 0 and not any(stop.startswith(text[-keep:]) for stop in self._stops):
            keep -= 1
        split = len(text) - max(keep, 0)
        self._held = text[split:]
        return text[:split]

    def flush(self) -> str:
        """Give what was held back, once the text is over."""
        held, self._held = self._held, ""
        return held


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings as a tuple; `RequestError` if one is empty or no string."""
    check_type("stop", stop, Iterable, "strings that are not empty")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in stops:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop holds {text!r}: expected strings that are not empty")
    return stops
