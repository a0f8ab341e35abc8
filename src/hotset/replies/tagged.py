"""Calls whose arguments stand between tags, without types: Qwen3-Coder's, GLM's, MiniMax's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotset.replies.events import Event
from hotset.replies.json_text import dumps, loads
from hotset.replies.readers import LONGEST_NAME, NAME, Calls, Reader


@dataclass(frozen=True)
class Tags:
    """What stands around the parts of a call."""

    name: tuple[str, str]
    """Around the name; an end of "" means that the first key or the end of the call ends it."""
    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    lines: bool = False
    """Values stand on lines of their own."""


QWEN = Tags(("<function=", ">"), ("<parameter=", ">"), ("", "</parameter>"), "</function>", lines=True)
GLM = Tags(("", ""), ("<arg_key>", "</arg_key>"), ("<arg_value>", "</arg_value>"), "</tool_call>")
INVOKE = Tags(('<invoke name="', '">'), ('<parameter name="', '">'), ("", "</parameter>"), "</invoke>")


class Tagged(Reader):
    """A call between tags. Values have the types of the tool's schema; texts come as they are written."""

    def __init__(self, calls: Calls, tags: Tags, *, opened: bool = False) -> None:
        """`opened`: the tag before the name has been read."""
        super().__init__(calls)
        self._tags = tags
        self._at = "name" if opened or not tags.name[0] else "before the name"
        self._text = ""  # of the part that is being read, as far as nothing was given of it
        self._schema: Mapping[str, Any] = {}
        self._key = ""
        self._members = 0
        self._streams = False  # the value is a text and is given piece by piece
        self._started = False  # something of it was given, or a first line end left out

    def push(self, c: str) -> list[Event]:
        self._text += c
        match self._at:
            case "before the name":
                self._expect({self._tags.name[0]: "name"})
            case "name":
                return self._name()
            case "member":
                if self._expect({self._tags.key[0]: "key", self._tags.end: "over"}) == "over":
                    return self._end_of_call()
            case "key":
                return self._read_key()
            case "before the value":
                if self._expect({self._tags.value[0]: "value"}):
                    return self._begin_value()
            case "value":
                return self._value()
        return []

    def _expect(self, tags: dict[str, str]) -> str:
        """Go on to another part where one of these tags is complete, spaces before it left out."""
        text = self._text.lstrip()
        if text in tags:
            self._at, self._text = tags[text], ""
            return self._at
        self.wrong = not any(tag.startswith(text) for tag in tags)
        return ""

    def _name(self) -> list[Event]:
        key, end, close = self._tags.key[0], self._tags.end, self._tags.name[1]
        mark = next((mark for mark in (close,) if mark and self._text.endswith(mark)), "")
        if not close:
            mark = next((mark for mark in (key, end) if self._text.endswith(mark)), "")
        if not mark:
            self.wrong = len(self._text) > LONGEST_NAME
            return []
        name = self._text.removesuffix(mark).strip()
        if not NAME.fullmatch(name):
            self.wrong = True
            return []
        tool = self.calls.tools.get(name)
        properties = tool.parameters.get("properties") if tool else None
        self._schema = properties if isinstance(properties, Mapping) else {}
        self._text, self._at = "", "key" if mark == key else "member"
        events: list[Event] = [self._begin(name), self._arguments("{")]
        return events + (self._end_of_call() if mark == end else [])

    def _read_key(self) -> list[Event]:
        if not self._text.endswith(self._tags.key[1]):
            self.wrong = len(self._text) > LONGEST_NAME
            return []
        self._key = self._text.removesuffix(self._tags.key[1]).strip()
        self._text, self._at = "", "before the value"
        return [] if self._tags.value[0] else self._begin_value()

    def _begin_value(self) -> list[Event]:
        self._at, self._started = "value", not self._tags.lines
        self._streams = _types(self._schema.get(self._key)) == {"string"}
        comma = ", " if self._members else ""
        self._members += 1
        head = f"{comma}{dumps(self._key)}: "
        return [self._arguments(head + '"' if self._streams else head)]

    def _value(self) -> list[Event]:
        close = self._tags.value[1]
        if not self._started and self._streams:  # the line end after the tag
            self._started = True
            self._text = self._text.removeprefix("\n")
        if self._text.endswith(close):
            text = self._text.removesuffix(close)
            if self._tags.lines:
                text = text.removesuffix("\n")
            self._text, self._at = "", "member"
            if self._streams:
                return [self._arguments(dumps(text)[1:])]
            text = text.removeprefix("\n") if self._tags.lines else text
            return [self._arguments(typed(text, self._schema.get(self._key)))]
        if not self._streams:
            return []
        keep = min(len(close) + 1, len(self._text))
        while keep and not any(end.startswith(self._text[-keep:]) for end in (close, "\n" + close)):
            keep -= 1
        sure = self._text[: len(self._text) - keep]
        self._text = self._text[len(sure) :]
        return [self._arguments(dumps(sure)[1:-1])]

    def _end_of_call(self) -> list[Event]:
        self.done = True
        return [self._arguments("}"), self._over()]


def typed(text: str, schema: Any) -> str:
    """A value that was written without a type, as JSON: by its schema, or as what it reads like."""
    types = _types(schema)
    if types == {"string"}:
        return dumps(text)
    try:
        value = loads({"True": "true", "False": "false", "None": "null"}.get(text.strip(), text))
        written = dumps(value)
    except ValueError:
        return dumps(text)
    if isinstance(value, str):
        return written if types and "string" not in types else dumps(text)
    return written if not types or _type(value) & types else dumps(text)


def _types(schema: Any) -> set[str]:
    """The types that a JSON schema allows; none: it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    if "type" in schema:
        kind = schema["type"]
        stated = kind if isinstance(kind, list) else [kind]
        return {one for one in stated if isinstance(one, str)}
    if isinstance(schema.get("enum"), list):
        return {name for value in schema["enum"] for name in _type(value)}
    either: list[Any] = next((schema[k] for k in ("anyOf", "oneOf") if isinstance(schema.get(k), list)), [])
    return {name for one in either for name in _types(one)}


def _type(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    kinds = {float: "number", str: "string", list: "array", dict: "object"}
    return {kinds.get(type(value), "null")}
