"""One answer as it is made of tokens: pieces of reasoning, content and calls of tools."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hotset.serve.request import Token
from hotset.server.plain import CallArguments, CallBegin, Content, Event, Parser, Reasoning


@dataclass
class Piece:
    """An event, and the tokens of a content's text where their probabilities were asked for."""

    event: Event
    tokens: list[Token] = field(default_factory=list)


@dataclass
class Call:
    """A call of a tool."""

    id: str
    name: str
    arguments: str = ""


class Answer:
    """What a model has answered so far."""

    def __init__(self, index: int, parser: Parser) -> None:
        self.index = index
        self.content = ""
        self.reasoning = ""
        self.calls: list[Call] = []
        self.logprobs: list[Token] = []
        """The content's tokens, where their probabilities were asked for."""
        self.tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        """``stop``, ``length`` or ``tool_calls``, once the answer is over."""
        self.stop: str | None = None
        """The stop string that ended it."""
        self._parser = parser
        self._pending: list[Token] = []  # tokens whose text has not come out of the parser

    def read(self, tokens: Sequence[Token]) -> list[Piece]:
        """Take new tokens; what they add."""
        pieces: list[Piece] = []
        for token in tokens:
            self.tokens += 1
            if token.logprobs:
                self._pending.append(token)
            events = self._parser.feed(token.text)
            if token.finish_reason:
                events = [*events, *self._parser.end()]
            if events and isinstance(events[-1], Reasoning):
                self.reasoning_tokens += 1
            for event in events:
                self._add(event, pieces)
            if token.finish_reason:
                self.finish_reason = "tool_calls" if self.calls else token.finish_reason
                self.stop = token.stop
        return pieces

    def _add(self, event: Event, pieces: list[Piece]) -> None:
        tokens, self._pending = self._pending, []
        match event:
            case Content(text):
                self.content += text
                self.logprobs += tokens
            case Reasoning(text):
                self.reasoning += text
                tokens = []
            case CallBegin(_, id, name):
                self.calls.append(Call(id, name))
                tokens = []
            case CallArguments(index, text):
                self.calls[index].arguments += text
                tokens = []
        last = pieces[-1].event if pieces else None
        match last, event:
            case Content(before), Content(text):
                pieces[-1] = Piece(Content(before + text), pieces[-1].tokens + tokens)
            case Reasoning(before), Reasoning(text):
                pieces[-1] = Piece(Reasoning(before + text))
            case CallArguments(index, before), CallArguments(same, text) if index == same:
                pieces[-1] = Piece(CallArguments(index, before + text))
            case _:
                pieces.append(Piece(event, tokens))
