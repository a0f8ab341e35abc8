"""JSON read character by character: how far a text is JSON, and which part of it is being written."""

import json
import re
from typing import Any

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_WORDS = ("true", "false", "null")
_SPACE = " \t\r\n"
_MOST_DEPTH = 200


class JSONText:
    """One JSON value, strict but for line ends and other control characters inside strings."""

    def __init__(self) -> None:
        self.done = False
        """The value is complete. Numbers, true, false and null never are: what follows them ends them."""
        self.wrong = False
        """This is no JSON."""
        self.string = False
        """Inside a string."""
        self.keys: list[str | None] = []
        """The member being written of each open object, outermost first; None in an array."""
        self._open: list[str] = []
        self._want = "value"
        self._word = ""
        self._key = ""
        self._escape = ""

    @property
    def depth(self) -> int:
        """Objects and arrays that are open."""
        return len(self._open)

    def push(self, c: str) -> bool:
        """Take the next character; False: the text is no JSON (any more)."""
        if self.done or not (self._in_string(c) if self.string else self._outside(c)):
            self.wrong = True
        return not self.wrong

    def _in_string(self, c: str) -> bool:
        is_key = self._want == "colon"
        if is_key:
            self._key += c
        if self._escape:
            self._escape += c
            if self._escape[1] == "u":
                if len(self._escape) > 2 and c not in "0123456789abcdefABCDEF":
                    return False
                if len(self._escape) == 6:
                    self._escape = ""
                return True
            self._escape = ""
            return c in '"\\/bfnrt'
        if c == "\\":
            self._escape = c
        elif c == '"':
            self.string = False
            if is_key:
                self.keys[-1] = self._key[:-1]
            self._ended()
        return True

    def _outside(self, c: str) -> bool:
        if self._word:
            if c not in _SPACE and c not in ",]}":
                self._word += c
                return len(self._word) < 400
            if self._word not in _WORDS and not _NUMBER.fullmatch(self._word):
                return False
            self._word = ""
            self._want = "comma"
        if c in _SPACE:
            return True
        if c in "]}":
            wants = ("comma", "key or end") if c == "}" else ("comma", "value or end")
            if not self._open or self._open[-1] != {"]": "[", "}": "{"}[c] or self._want not in wants:
                return False
            self._open.pop()
            self.keys.pop()
            self._want = "comma"
            self.done = not self._open
            return True
        return self._begin(c)

    def _begin(self, c: str) -> bool:
        """A character that closes nothing."""
        if c == "," and self._want == "comma":
            self._want = "key" if self._open[-1] == "{" else "value"
        elif c == ":" and self._want == ":":
            self._want = "value"
        elif self._want in ("key", "key or end"):
            self.string, self._key, self._want = True, "", "colon"
            return c == '"'
        elif self._want in ("value", "value or end"):
            if c in "{[":
                self._open.append(c)
                self.keys.append(None)
                self._want = "key or end" if c == "{" else "value or end"
                return len(self._open) <= _MOST_DEPTH
            if c == '"':
                self.string, self._want = True, "comma"
            else:
                self._word = c
                return c in "-0123456789tfn"
        else:
            return False
        return True

    def _ended(self) -> None:
        """A string is over."""
        if self._want == "colon":
            self._want = ":"
        elif not self._open:
            self.done = True


def escaped(c: str) -> str:
    """A character inside a JSON string: line ends and the like, which models write as they are, escaped."""
    return f"\\u{ord(c):04x}" if c < " " else c


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def loads(text: str) -> Any:
    """The value of a JSON text, line ends in its strings allowed; ValueError if there is none."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def dumps(value: Any) -> str:
    """A value as JSON that can be sent, lone surrogates escaped; ValueError or TypeError if it is none."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isprintable() or _is_unicode(text) else json.dumps(value, allow_nan=False)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
