"""Reads one call, or several in a list, character by character; events come once they are sure.

The text begins after the mark that begins a call. A reader is `done` with the call's last character, or
`wrong` with the first one that no call can have.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hotset.replies.events import CallArguments, CallBegin, CallEnd, Event, Tool, call_id
from hotset.replies.json_text import JSONText, dumps, escaped, loads

_ARGUMENTS = ("arguments", "parameters")
NAME = re.compile(r"[\w.:/-]+")
LONGEST_NAME = 200


class Calls:
    """The calls of one reply."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._count = 0

    def begin(self, name: str) -> CallBegin:
        """Begin the next call."""
        self._count += 1
        return CallBegin(self._count - 1, call_id(), name)

    def whole(self, name: str, arguments: str) -> list[Event]:
        """The events of a call that is known as a whole."""
        begin = self.begin(name)
        return [begin, CallArguments(begin.index, arguments), CallEnd(begin.index)]


class Reader(ABC):
    """One way of writing calls."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.open: int | None = None
        """The number of the call that has begun and is not over."""
        self.done = False
        self.wrong = False

    @abstractmethod
    def push(self, c: str) -> list[Event]:
        """Take the next character."""

    def end(self) -> list[Event]:
        """The text is over: a reader that is not done now was wrong."""
        self.wrong = not self.done
        return []

    def _begin(self, name: str) -> CallBegin:
        event = self.calls.begin(name)
        self.open = event.index
        return event

    def _over(self) -> CallEnd:
        index, self.open = self.open, None
        assert index is not None
        return CallEnd(index)

    def _arguments(self, text: str) -> CallArguments:
        assert self.open is not None
        return CallArguments(self.open, text)


class Arguments(Reader):
    """A JSON object; the call's name is known."""

    def __init__(self, calls: Calls, name: str) -> None:
        super().__init__(calls)
        self._name = name
        self._json = JSONText()

    def push(self, c: str) -> list[Event]:
        if self.open is None and c != "{":
            self.wrong = not c.isspace()
            return []
        begun: list[Event] = [] if self.open is not None else [self._begin(self._name)]
        string = self._json.string
        if not self._json.push(c):
            self.wrong = True
            return begun
        begun.append(self._arguments(escaped(c) if string else c))
        if self._json.done:
            self.done = True
            begun.append(self._over())
        return begun


class NamedJSON(Reader):
    """``{"name": NAME, "arguments": {…}}``, or a list of such objects."""

    def __init__(self, calls: Calls, *, known: bool = False, name_key: str = "name") -> None:
        """`known`: only calls of tools that there are count."""
        super().__init__(calls)
        self._known, self._name_key = known, name_key
        self._list = False
        self._comma = False  # the next thing in the list is a comma or its end
        self._json: JSONText | None = None
        self._text: list[str] = []
        self._streamed = False

    def push(self, c: str) -> list[Event]:
        if self._json is not None:
            return self._inside(self._json, c)
        if c == "{" and not self._comma:
            self._json, self._text, self._streamed = JSONText(), [], False
            return self._inside(self._json, c)
        if c == "[" and not self._list:
            self._list = True
        elif c == "," and self._comma:
            self._comma = False
        elif c == "]" and self._list and self._comma:
            self.done = True
        else:
            self.wrong = not c.isspace()
        return []

    def _inside(self, text: JSONText, c: str) -> list[Event]:
        string, depth = text.string, text.depth
        if not text.push(c):
            self.wrong = True
            return []
        c = escaped(c) if string else c
        self._text.append(c)
        events: list[Event] = []
        if self.open is not None and not self._streamed:
            events.append(self._arguments(c))
            self._streamed = text.depth == 1
        elif self.open is None and depth == 1 and text.depth == 2 and c == "{" and text.keys[0] in _ARGUMENTS:
            events = self._try_begin()
        if text.done:
            events += self._object_over()
        return events

    def _try_begin(self) -> list[Event]:
        """The arguments begin: the call does, where its name stands before them."""
        name = self._name(_members("".join(self._text[:-1]) + "null}"))
        return [self._begin(name), self._arguments("{")] if name else []

    def _object_over(self) -> list[Event]:
        self._json = None
        self._comma, self.done = True, not self._list
        if self.open is not None:
            return [self._over()]
        members = _members("".join(self._text))
        name = self._name(members)
        arguments: Any = next(
            (members[key] for key in _ARGUMENTS if key in members), None if self._known else {}
        )
        if isinstance(arguments, str):
            arguments = _value(arguments)
        if not name or not isinstance(arguments, dict):
            self.wrong, self.done = True, False
            return []
        return self.calls.whole(name, dumps(arguments))

    def _name(self, members: dict[str, Any]) -> str:
        """The name that counts; empty if there is none."""
        name = members.get(self._name_key)
        return name if isinstance(name, str) and (not self._known or name in self.calls.tools) else ""


class Mistral(Reader):
    """``[{"name": …}]``, or ``NAME[ARGS]{…}``, also with ``[CALL_ID]…`` or without ``[ARGS]``."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self._head = ""
        self._inner: Reader | None = None

    def push(self, c: str) -> list[Event]:
        if self._inner is None:
            if c in "[{" and not self._head.strip():
                self._inner = NamedJSON(self.calls)
            elif c == "{":
                name = re.sub(r"(\[CALL_ID\][\w-]*)?(\[ARGS\])?$", "", self._head.strip()).strip()
                self.wrong = not NAME.fullmatch(name)
                self._inner = Arguments(self.calls, name)
            else:
                self._head += c
                self.wrong = not (NAME.match(c) or c in "[] \n") or len(self._head) > LONGEST_NAME
                return []
        if self.wrong:
            return []
        events = self._inner.push(c)
        self.open, self.done, self.wrong = self._inner.open, self._inner.done, self._inner.wrong
        return events


class Whole(Reader):
    """A call, or several, in one piece up to a mark, read by a function."""

    def __init__(
        self,
        calls: Calls,
        read: Callable[[str], Sequence[tuple[str, dict[str, Any]]] | None],
        *,
        begin: str,
        close: str | None,
    ) -> None:
        """`read` gives names and arguments, None where there is no call; `close` None: until the end."""
        super().__init__(calls)
        self._read = read
        self._begin_mark = begin
        self._close = close
        self._text: list[str] = []
        self._tail = ""

    def push(self, c: str) -> list[Event]:
        self._text.append(c)
        self._tail = (self._tail + c)[-64:]
        if self._tail.endswith(self._begin_mark):
            self.wrong = True
        elif self._close and self._tail.endswith(self._close):
            return self._finish("".join(self._text)[: -len(self._close)])
        return []

    def end(self) -> list[Event]:
        if self._close is None:
            return self._finish("".join(self._text))
        return super().end()

    def _finish(self, text: str) -> list[Event]:
        found = self._read(text)
        self.done = bool(found)
        self.wrong = not found
        written = [(name, dumps(arguments)) for name, arguments in found or ()]
        return [event for call in written for event in self.calls.whole(*call)]


class ByFirst(Reader):
    """Chooses among readers by the first character that is no space; None stands for any other."""

    def __init__(self, calls: Calls, readers: Mapping[str | None, Callable[[], Reader]]) -> None:
        super().__init__(calls)
        self._readers = readers
        self._inner: Reader | None = None

    def push(self, c: str) -> list[Event]:
        if self._inner is None:
            if c.isspace():
                return []
            make = self._readers.get(c) or self._readers.get(None)
            if make is None:
                self.wrong = True
                return []
            self._inner = make()
        return self._after(self._inner, self._inner.push(c))

    def end(self) -> list[Event]:
        return self._after(self._inner, self._inner.end()) if self._inner else super().end()

    def _after(self, inner: Reader, events: list[Event]) -> list[Event]:
        self.open, self.done, self.wrong = inner.open, inner.done, inner.wrong
        return events


def _value(text: str) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return loads(text)
    except ValueError:
        return None


def _members(text: str) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    value = _value(text)
    return value if isinstance(value, dict) else {}
