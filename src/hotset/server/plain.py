"""Text without reasoning and calls."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Reasoning:
    """What the model thought."""

    text: str


@dataclass(frozen=True)
class Content:
    """What the model answered."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The model calls a tool."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """Some of a call's arguments, as JSON."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """A call is complete."""

    index: int
    broken: str = ""
    """Not empty: what the model wrote, which is no call after all."""


Event = Reasoning | Content | CallBegin | CallArguments | CallEnd


class Parser(Protocol):
    """Splits a model's text."""

    def feed(self, text: str) -> list[Event]:
        """What is certain with the next piece of text."""

    def end(self) -> list[Event]:
        """What was held back."""


class PlainText:
    """All is content."""

    def feed(self, text: str) -> list[Event]:
        """See `Parser`."""
        return [Content(text)] if text else []

    def end(self) -> list[Event]:
        """See `Parser`."""
        return []
