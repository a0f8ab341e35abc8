"""What a request of any API asks for: each API translates to this, and back from its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotset.serve.arguments import shown
from hotset.serve.sampler import Sampling
from hotset.server.errors import wrong
from hotset.server.fields import Fields
from hotset.server.rules import Rule

TEMPERATURE, TOP_P = 0.7, 0.95
"""Where the client does not say, as in `hotset chat`."""

MOST_CHOICES = 16
"""Answers to one request."""

_FORBIDDEN = -1e30
"""Added to a token's logit, it is never chosen."""


@dataclass(frozen=True)
class Conversation:
    """Messages in OpenAI's form, which chat templates read."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    """For the chat template."""


Text = str | tuple[int, ...]
"""A text, or its token ids."""


@dataclass(frozen=True)
class Gap:
    """Two texts, between which something is to be filled in, and other files, names and texts."""

    before: str
    after: str
    files: Sequence[tuple[str, str]] = ()


Prompt = Conversation | Gap | Text
"""A conversation to be answered, a gap to be filled in, or a text to be continued."""


@dataclass(frozen=True)
class Ask:
    """Prompts, and how to answer each of them."""

    model: str | None
    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    """Answers to each prompt."""
    stream: bool = False
    rule: Rule | None = None
    """What the answers have to be."""
    one_call: bool = False
    """An answer ends after its first call of a tool."""


def sampling(fields: Fields, *, logprobs: int | None = None, seed: int | None = None) -> Sampling:
    """How to choose tokens, by the names that OpenAI, llama.cpp and others have for it."""
    temperature = fields.number("temperature", 0)
    top_p = fields.number("top_p", 0, 1)
    penalty = "repetition_penalty" if "repetition_penalty" in fields else "repeat_penalty"
    repetition = fields.number(penalty)
    if repetition is not None and repetition <= 0:
        raise fields.wrong(penalty, "a number over 0")
    if seed is None:
        seed = fields.integer("seed")
    return Sampling(
        temperature=TEMPERATURE if temperature is None else temperature,
        top_k=max(fields.integer("top_k", -1) or 0, 0),
        top_p=(TOP_P if temperature is None else 1.0) if top_p is None else top_p,
        min_p=fields.number("min_p", 0, 1) or 0.0,
        repetition_penalty=1.0 if repetition is None else repetition,
        presence_penalty=fields.number("presence_penalty") or 0.0,
        frequency_penalty=fields.number("frequency_penalty") or 0.0,
        seed=None if seed in (None, -1) else seed % (1 << 64),
        logit_bias=_logit_bias(fields),
        logprobs=logprobs,
    )


def most_tokens(fields: Fields, *names: str) -> int | None:
    """The longest answer, by the first of some names that is given; -1 is no limit."""
    for name in names:
        if name in fields:
            value = fields.integer(name, -1)
            if value == 0:
                raise fields.wrong(name, "1 or more")
            return None if value == -1 else value
    return None


def _logit_bias(fields: Fields) -> dict[int, float]:
    """Token ids are keys, so they are texts; llama.cpp's clients send pairs, and false for never."""
    given = fields.get("logit_bias")
    if given is None:
        return {}
    expected = "token ids with a number from -100 to 100 each"
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise fields.wrong("logit_bias", expected)
    made: dict[int, float] = {}
    for key, value in pairs:
        is_id = isinstance(key, int) or (isinstance(key, str) and key.isascii() and key.isdecimal())
        is_number = isinstance(value, int | float) and (value is False or not isinstance(value, bool))
        if not is_id or not is_number or len(str(key)) > 9 or int(key) < 0 or not -100 <= value <= 100:
            name = fields.name("logit_bias")
            raise wrong(name, f"{name} has {shown(key)}: {shown(value)}: expected {expected}")
        made[int(key)] = _FORBIDDEN if value is False or value <= -100 else float(value)
    return made
