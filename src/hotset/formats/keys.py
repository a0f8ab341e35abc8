"""Typed, checked reading of a model file's key-values, whichever format they come from."""

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hotset.core.errors import CheckpointError

REQUIRED: Any = object()
"""Default of a key that must be there."""

LARGEST = 2**31 - 1
"""Sizes above this are taken for damage, and never get as far as an allocation."""


def shown(value: object, limit: int = 60) -> str:
    """Whatever a file held, as a short, printable piece of one line."""
    text = " ".join((repr(value[: limit + 1]) if isinstance(value, str) else reprlib.repr(value)).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Keys:
    """Key-values of one file. ``prefix`` is put before every key, and ``names`` renames keys first.

    ``also`` has second names, for where a key is there under that name alone. An absent key has the value in
    ``defaults`` (by the caller's name), else the caller's default; null has the latter.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        *,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
        also: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._values = values
        self._where = where
        self._prefix = prefix
        self._names = names or {}
        self._also = also or {}
        self._defaults = defaults or {}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the raw value."""
        value = self._values.get(self.name(key), self._defaults.get(key))
        if value is None:
            value = default
        if value is REQUIRED:
            raise CheckpointError(f"{self._where}: {self.name(key)} is missing")
        return value

    def name(self, key: str) -> str:
        """Return the name in the file."""
        name = self._prefix + self._names.get(key, key)
        second = self._also.get(key)
        if second is None or name in self._values or self._prefix + second not in self._values:
            return name
        return self._prefix + second

    def stated(self, key: str) -> bool:
        """Return whether the file has the key, be it null."""
        return self.name(key) in self._values

    def refuse(self, key: str, expected: str, found: object) -> CheckpointError:
        """Build the error for a value that cannot be run."""
        return CheckpointError(f"{self._where}: {self.name(key)}: expected {expected}, found {shown(found)}")

    def integer(self, key: str, default: Any = REQUIRED, *, low: int = 1, high: int = LARGEST) -> int:
        """Return an integer in [low, high]; a list with one for each layer must have equal entries."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray | list) and len(value) and all(v == value[0] for v in value):
            value = value[0]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(key, f"an integer from {low} to {high}", value)
        return int(value)

    def number(self, key: str, default: Any = REQUIRED, *, low: float = 0.0, high: float = 1e30) -> float:
        """Return a finite number in [low, high]."""
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false", value)
        return value

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """Return a string."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, "a string", value)
        return value

    def require(self, neutral: Mapping[str, Any]) -> None:
        """Refuse keys that are there and have another value than these."""
        for key, expected in neutral.items():
            found = self.get(key, expected)
            if isinstance(found, np.ndarray) or found != expected:
                raise self.refuse(key, shown(expected), found)

    def section(self, key: str, value: Any) -> "Keys":
        """Return a nested table's keys, under ``key.``."""
        if not isinstance(value, Mapping):
            raise self.refuse(key, "a table", value)
        return Keys(value, f"{self._where}: {self.name(key)}")
