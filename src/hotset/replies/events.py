"""What parsers give: parts of a reply in the order in which the model wrote them."""

import secrets
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotset.core.errors import RequestError


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """The answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The model calls a tool; calls of a reply are numbered from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments. All pieces together are a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is over."""

    index: int
    broken: str = ""
    """Not empty: the call as the model wrote it, where it broke off. Its arguments are no whole JSON."""


Event = Reasoning | Content | CallBegin | CallArguments | CallEnd


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The JSON schema of its arguments, an object."""

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any]) -> "Tool":
        """From OpenAI's ``{"type": "function", "function": {"name", "parameters"}}``, or the inner part."""
        function = schema.get("function", schema)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise RequestError("a tool has no name: expected {'type': 'function', 'function': {'name': …}}")
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise RequestError(f"tool {name}: parameters are no JSON schema")
        return cls(name, parameters)


@dataclass(frozen=True)
class Call:
    """A whole call."""

    id: str
    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True)
class Reply:
    """A whole reply."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]


def collect(events: Iterable[Event]) -> Reply:
    """Put a whole reply's events together; calls that broke off are content, as the model wrote them."""
    parts: dict[type[Event], list[str]] = {Content: [], Reasoning: []}
    calls: dict[int, tuple[CallBegin, list[str]]] = {}
    for event in events:
        match event:
            case Content(text) | Reasoning(text):
                parts[type(event)].append(text)
            case CallBegin():
                calls[event.index] = (event, [])
            case CallArguments(index, text):
                calls[index][1].append(text)
            case CallEnd(index, broken) if broken:
                del calls[index]
                parts[Content].append(broken)
    return Reply(
        "".join(parts[Content]),
        "".join(parts[Reasoning]),
        tuple(Call(begin.id, begin.name, "".join(texts)) for begin, texts in calls.values()),
    )


def joined(events: Sequence[Event]) -> list[Event]:
    """The same events with neighbouring pieces of a kind put together, and without empty ones."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        match last, event:
            case _, Reasoning("") | Content("") | CallArguments(_, ""):
                continue
            case (Reasoning(a), Reasoning(b)) | (Content(a), Content(b)):
                out[-1] = type(event)(a + b)  # type: ignore[call-arg, arg-type]
            case CallArguments(i, a), CallArguments(j, b) if i == j:
                out[-1] = CallArguments(i, a + b)
            case _:
                out.append(event)
    return out


def call_id() -> str:
    """A new call's id: nine letters and digits, which every template takes back."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
