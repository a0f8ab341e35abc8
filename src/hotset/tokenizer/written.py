"""Text that knows who wrote it.

A chat template mixes its own words with what users and tools say. Which characters of the result are the
template's is not looked for afterwards, it is kept: the template's literals are `Written`, and what is made
of them by joining, cutting, trimming, replacing and so on is `Written` again, character by character. What
users say is a plain ``str``, of which no operation makes the template's words. An operation that is not known
here gives a plain ``str``, too: then the template's words count as anybody's, never the other way round.
"""

import re
from collections.abc import Iterable
from typing import Any, SupportsIndex

_TEMPLATE = 1
_NAME = 2
_DIRECTIVE = re.compile(r"%(?:\((\w+)\))?[-+ #0]*\d*(?:\.\d+)?[a-zA-Z%]")


class Written(str):
    """A text and, for each character, its author: the template, a name that a caller chose, or anybody."""

    _by: bytes

    def __new__(cls, text: str, by: bytes | None = None) -> "Written":
        """``by`` has a number a character; by default anybody may have written it."""
        made = super().__new__(cls, text)
        made._by = bytes(len(made)) if by is None else by
        return made

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> "Written":
        return (
            Written(str.__add__(self, other), self._by + _by(other))
            if isinstance(other, str)
            else NotImplemented
        )

    def __radd__(self, other: str) -> "Written":
        return (
            Written(str.__add__(other, self), _by(other) + self._by)
            if isinstance(other, str)
            else NotImplemented
        )

    def __mul__(self, times: SupportsIndex) -> "Written":
        return Written(str.__mul__(self, times), self._by * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> "Written":
        """``%`` formatting: what stands between the directives keeps its author."""
        whole = str.__mod__(self, values)
        rest = iter(values if isinstance(values, tuple) else [values])
        parts: list[str] = []
        at = 0
        for directive in _DIRECTIVE.finditer(self):
            values_of_one = () if directive[0][-1] == "%" else values if directive[1] else (next(rest),)
            parts += [self[at : directive.start()], directive[0] % values_of_one]
            at = directive.end()
        made = joined([*parts, self[at:]])
        return made if made == whole else Written(whole)

    def __getitem__(self, index: SupportsIndex | slice) -> "Written":
        by = self._by[index] if isinstance(index, slice) else bytes([self._by[index]])
        return Written(str.__getitem__(self, index), by)

    def strip(self, chars: str | None = None, /) -> "Written":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "Written":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Written":
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> "Written":
        return self[len(prefix) :] if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> "Written":
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list["Written"]:  # type: ignore[override]
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list["Written"]:  # type: ignore[override]
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list["Written"]:  # type: ignore[override]
        lines: list[Written] = []
        at = 0
        for whole, line in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            lines.append(self[at : at + len(line)])
            at += len(whole)
        return lines

    def partition(self, sep: str, /) -> tuple["Written", "Written", "Written"]:
        return self._parted(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple["Written", "Written", "Written"]:
        return self._parted(str.rpartition(self, sep))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not old:
            return str.replace(self, old, new, count)
        return joined(self.split(old, count), new)

    def join(self, texts: Iterable[str], /) -> "Written":
        return joined(texts, self)

    def lower(self) -> str:
        return self._recased(str.lower(self))

    def upper(self) -> str:
        return self._recased(str.upper(self))

    def title(self) -> str:
        return self._recased(str.title(self))

    def capitalize(self) -> str:
        return self._recased(str.capitalize(self))

    def _located(self, pieces: list[str], sep: str | None) -> list["Written"]:
        """``pieces`` of this text, in order, with ``sep`` (None: any spaces) between them."""
        found: list[Written] = []
        at = 0
        for piece in pieces:
            start = at if sep else self.index(piece, at)
            found.append(self[start : start + len(piece)])
            at = start + len(piece) + len(sep or "")
        return found

    def _parted(self, parts: tuple[str, str, str]) -> tuple["Written", "Written", "Written"]:
        first, middle = (len(part) for part in parts[:2])
        return self[:first], self[first : first + middle], self[first + middle :]

    def _recased(self, text: str) -> str:
        return Written(text, self._by) if len(text) == len(self) else text


def by_template(text: str) -> Written:
    """A literal of the template."""
    return Written(text, bytes([_TEMPLATE]) * len(text))


def named(text: str) -> Written:
    """A word such as a role, which a template may put inside its control tokens (``<|user|>``)."""
    return Written(text, bytes([_NAME]) * len(text))


def template_wrote(text: str, start: int, end: int) -> bool:
    """Whether the template wrote the characters from ``start`` to ``end``, names among them aside."""
    by = _by(text)[start:end]
    return 0 not in by and _TEMPLATE in by


def anybody_wrote(text: str, start: int, end: int) -> bool:
    """Whether neither the template nor a name has a part in the characters from ``start`` to ``end``."""
    return not any(_by(text)[start:end])


def joined(texts: Iterable[str], separator: str = "") -> Written:
    """``separator.join(texts)``, each character with its author."""
    parts = list(texts)
    return Written(str.join(separator, parts), _by(separator).join(map(_by, parts)))


def _by(text: str) -> bytes:
    return text._by if isinstance(text, Written) else bytes(len(text))
