"""One answer as it is made of tokens: blocks of reasoning, content and calls of tools."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotset.replies import CallArguments, CallBegin, CallEnd, Content, Event, Parser, Reasoning
from hotset.serve.request import Token
from hotset.server.parsing import PlainText


@dataclass
class Block:
    """A run of one kind: ``reasoning``, ``content``, or a ``call`` whose text is its arguments."""

    kind: str
    text: str = ""
    id: str = ""
    name: str = ""
    index: int = 0
    """A call's number among the answer's calls, those that broke off too."""
    broken: bool = False
    """It is a call that broke off: what the model wrote of it follows as content."""

    @property
    def arguments(self) -> dict[str, Any]:
        """A call's arguments as an object; of a call that was cut off, none."""
        try:
            value = json.loads(self.text)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass
class Piece:
    """More text of a block, the answer's last; of a new one where that `opens`."""

    block: Block
    text: str
    opens: bool
    tokens: list[Token] = field(default_factory=list)
    """The text's tokens, where their probabilities were asked for."""


class Answer:
    """What a model has answered so far."""

    def __init__(
        self,
        index: int,
        parser: Parser | PlainText,
        *,
        ends: Collection[int] = (),
        one_call: bool = False,
    ) -> None:
        """`ends` are tokens that end an answer and are no part of it.

        `one_call`: it ends after its first call of a tool.
        """
        self.index = index
        self.blocks: list[Block] = []
        """All that have begun, as they are streamed."""
        self.logprobs: list[Token] = []
        """The content's tokens, where their probabilities were asked for."""
        self.tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        """``stop``, ``length`` or ``tool_calls``, once the answer is over."""
        self.stop: str | None = None
        """The stop string that ended it."""
        self._parser = parser
        self._ends = ends
        self._one_call = one_call
        self._pending: list[Token] = []  # tokens whose text has not come out of the parser

    @property
    def content(self) -> str:
        """The text for the user."""
        return self._text("content")

    @property
    def reasoning(self) -> str:
        """What the model thought."""
        return self._text("reasoning")

    @property
    def parts(self) -> list[Block]:
        """The blocks without the calls that broke off."""
        return [block for block in self.blocks if not block.broken]

    @property
    def calls(self) -> list[Block]:
        """The calls of tools."""
        return [block for block in self.parts if block.kind == "call"]

    def read(self, tokens: Sequence[Token]) -> list[Piece]:
        """Take new tokens; what they add, neighbours of a kind together."""
        pieces: list[Piece] = []
        for token in tokens:
            self.tokens += 1
            if token.logprobs and token.id not in self._ends:
                self._pending.append(token)
            events = self._parser.feed(token.text)
            if token.finish_reason:
                events = [*events, *self._parser.end()]
            if events and isinstance(events[-1], Reasoning):
                self.reasoning_tokens += 1
            for event in events:
                self._add(event, pieces)
                if self._one_call and isinstance(event, CallEnd) and self.calls:
                    self.finish_reason = "tool_calls"
                    return pieces
            if token.finish_reason:
                self.finish_reason = "tool_calls" if self.calls else token.finish_reason
                self.stop = token.stop
        return pieces

    def _add(self, event: Event, pieces: list[Piece]) -> None:
        tokens, self._pending = self._pending, []
        match event:
            case Content(text):
                tokens, self._pending = _of_text(tokens, text)
                self.logprobs += tokens
                self._write("content", text, pieces, tokens)
            case Reasoning(text):
                _, self._pending = _of_text(tokens, text)
                self._write("reasoning", text, pieces, [])
            case CallBegin(index, id, name):
                self.blocks.append(Block("call", id=id, name=name, index=index))
                pieces.append(Piece(self.blocks[-1], "", opens=True))
            case CallArguments(_, text):
                self._write("call", text, pieces, [])
            case CallEnd(_, broken) if broken:  # it was no call: what the model wrote is the answer
                self.blocks[-1].broken = True
                self._write("content", broken, pieces, tokens)

    def _write(self, kind: str, text: str, pieces: list[Piece], tokens: list[Token]) -> None:
        if not text:
            return
        opens = not self.blocks or self.blocks[-1].kind != kind
        if opens:
            self.blocks.append(Block(kind))
        block = self.blocks[-1]
        block.text += text
        if pieces and pieces[-1].block is block and (pieces[-1].text or kind != "call"):
            pieces[-1].text += text
            pieces[-1].tokens += tokens
        else:
            pieces.append(Piece(block, text, opens, tokens))

    def _text(self, kind: str) -> str:
        return "".join(block.text for block in self.blocks if block.kind == kind)


def _of_text(tokens: list[Token], text: str) -> tuple[list[Token], list[Token]]:
    """Those of these tokens that a text is made of, and those behind it, whose text is still to come.

    Before it there may be marks, and spaces around them, which are no part of any text.
    """
    start = "".join(token.text for token in tokens).rfind(text)
    if start < 0:
        return tokens, []
    own: list[Token] = []
    rest: list[Token] = []
    at = 0
    for token in tokens:
        place, at = at, at + len(token.text)
        if place >= start + len(text):
            rest.append(token)
        elif at > start or place == at == start:
            own.append(token)
    return own, rest
