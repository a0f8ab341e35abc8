"""gpt-oss's channels: ``<|start|>ROLE to=NAME<|channel|>CHANNEL<|message|>…<|end|>``, one after the other."""

import re
from collections.abc import Callable, Collection

from hotset.replies.events import Content, Event, Reasoning
from hotset.replies.readers import Arguments, Calls, Reader
from hotset.replies.scanner import Scanner

_BEGIN, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_ALL = (_BEGIN, _CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS)
_HEAD = re.compile(r"\s*(assistant)?\s*(t|to|to=[^\s<]*)?\s*")
_TO = re.compile(r"\bto=([^\s<]+)")


class HarmonyParser(Scanner):
    """Analysis is reasoning, a message to a function is a call, all other messages are the answer."""

    opening = ""

    def __init__(self, calls: Calls, bare: Callable[[Calls], Reader] | None = None) -> None:
        """`bare` reads a call that a message begins with, without any mark, with a brace."""
        super().__init__(calls)
        self._bare = bare
        self._head: str | None = ""
        """What a message begins with, up to its text; None within the text."""
        self._first = True  # no mark was seen yet
        self._begun: set[type] = set()

    @property
    def marks(self) -> tuple[str, ...]:
        """Every mark that is looked for; where they are control tokens, the text must show them."""
        return _ALL

    @property
    def answering(self) -> bool:
        """Whether what comes next belongs to the answer, and not to reasoning."""
        return self._head is None and self._kind is Content

    def end(self) -> list[Event]:
        """The last events: the reply is over."""
        self._give_head()
        return super().end()

    def _marks(self) -> Collection[str]:
        return _ALL

    def _is_shown(self, mark: str) -> bool:
        return False

    def _found(self, mark: str) -> None:
        if self._head is not None and mark != _CHANNEL and self._first and "<|" not in self._head:
            self._give_head()
        self._first = False
        if mark in (_BEGIN, *_ENDS):
            self._give_head()
            self._between()
            self._head = ""
        elif mark == _MESSAGE and self._head is not None:
            self._message(self._head)
        elif mark == _CHANNEL and self._head is None:
            self._between()
            self._head = mark
        elif self._head is not None:
            self._head += mark

    def _message(self, head: str) -> None:
        channel = head.partition(_CHANNEL)[2]
        to = _TO.search(head)
        self._head = None
        self._between()
        self._kind = Reasoning if channel.startswith("analysis") and not to else Content
        if to and self._calls.tools:
            self._enter(Arguments(self._calls, to[1].removeprefix("functions.")), "")
        elif self._kind in self._begun:
            self._out.append(self._kind("\n\n"))

    def _text(self, c: str) -> None:
        if self._head is not None:
            self._head += c
            if "<|" not in self._head and not _may_begin(self._head):
                self._give_head()
            return
        if c == "{" and self._blank and self._kind is Content and self._bare:
            self._begin_bare(self._bare, c)
            return
        super()._text(c)
        if not c.isspace():
            self._begun.add(self._kind)

    def _give_head(self) -> None:
        """What looked like a message's beginning is none, and so it is text."""
        head, self._head = self._head, None
        if head and "<|" not in head and (self._first or not _HEAD.fullmatch(head)):
            self._kind = Content
            for c in head:
                self._text(c)


def _may_begin(head: str) -> bool:
    """Whether a text may be what stands before a channel."""
    text = head.lstrip()
    return "assistant".startswith(text) or bool(_HEAD.fullmatch(head))
