"""Keeps control tokens that somebody wrote into a message from being taken for the template's own."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hotset.tokenizer.special_tokens import SpecialTokens

_MARK = "\ufdd0"  # a Unicode noncharacter: no text has one, and no template touches it
_HIDDEN = re.compile(f"{_MARK}(\\d+){_MARK}")


class SpecialTextMask:
    """Replaces control tokens in the strings of one conversation by marks, and marks by their text again."""

    def __init__(self, control: SpecialTokens) -> None:
        self._control = control
        self._texts: list[str] = []

    @property
    def used(self) -> bool:
        """Whether a string had anything to hide."""
        return bool(self._texts)

    def hide(self, value: Any) -> Any:
        """A copy of ``value`` (strings, mappings, sequences) whose strings are free of control tokens."""
        if isinstance(value, str):
            return self._hide(value.replace(_MARK, ""))
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [self.hide(item) for item in value]
        return value

    def reveal(self, text: str) -> str:
        """``text`` with the marks replaced by what they hide."""
        return _HIDDEN.sub(lambda mark: self._texts[int(mark[1])], text)

    def _hide(self, text: str) -> str:
        # The last characters may begin a control token that the next part of a message would complete.
        end = self._control.unfinished(text)
        parts = self._control.split(text[:end])
        hidden = "".join(part if id is None else self._mark(part) for part, id in parts)
        return hidden + self._mark(text[end:]) if end < len(text) else hidden

    def _mark(self, text: str) -> str:
        self._texts.append(text)
        return f"{_MARK}{len(self._texts) - 1}{_MARK}"
