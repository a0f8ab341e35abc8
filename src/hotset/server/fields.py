"""The fields of a request's body. Unknown ones are ignored; a wrong one is a 400 that names it."""

import json
import math
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, TypeVar

from hotset.serve.arguments import shown
from hotset.server.errors import ApiError, wrong

T = TypeVar("T")


def parse(body: bytes) -> "Fields":
    """The object in a request's body."""
    try:
        value = json.loads(body, parse_constant=_no_number, parse_float=_number)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    return Fields(value, "")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # as part of an answer it would be no JSON
        raise ValueError(f"{shown(text)} is larger than numbers may be")
    return number


class Fields:
    """An object of a body. A field that is null is as one that is not there."""

    def __init__(self, value: Any, place: str) -> None:
        """`place` is the object's own name in the body; "" for the whole."""
        if not isinstance(value, dict):
            what = f"{place} is {shown(value)}" if place else f"the body is {shown(value)}"
            raise wrong(place or "body", f"{what}: expected an object")
        self.all: dict[str, Any] = value
        self.place = place

    def name(self, field: str) -> str:
        """The full name of a field, for `param`."""
        return f"{self.place}.{field}" if self.place else field

    def wrong(self, field: str, expected: str) -> ApiError:
        """The error for a field's value."""
        name = self.name(field)
        if self.all.get(field) is None:
            return wrong(name, f"{name} is missing: expected {expected}")
        return wrong(name, f"{name} is {shown(self.all[field])}: expected {expected}")

    def __contains__(self, field: str) -> bool:
        return self.all.get(field) is not None

    def get(self, field: str) -> Any:
        """The value as it is."""
        return self.all.get(field)

    def text(self, field: str) -> str | None:
        """A text."""
        return self._typed(field, str, "a text")

    def need_text(self, field: str) -> str:
        """A text that has to be there."""
        value = self.text(field)
        if value is None:
            raise self.wrong(field, "a text")
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        """True or false."""
        value = self._typed(field, bool, "true or false")
        return default if value is None else value

    def list(self, field: str) -> list[Any] | None:
        """A list."""
        return self._typed(field, list, "a list")

    def objects(self, field: str) -> "Sequence[Fields]":
        """The objects of a list; none where there is no list."""
        return [Fields(value, f"{self.name(field)}[{i}]") for i, value in enumerate(self.list(field) or [])]

    def fields(self, field: str) -> "Fields | None":
        """An object."""
        value = self.all.get(field)
        return None if value is None else Fields(value, self.name(field))

    def integer(self, field: str, low: int | None = None, high: int | None = None) -> int | None:
        """An integer, in bounds; 3.0 is one."""
        value = self.all.get(field)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        fits = isinstance(value, int) and not isinstance(value, bool)
        if not fits or (low is not None and value < low) or (high is not None and value > high):
            raise self.wrong(field, f"an integer{_bounds(low, high)}")
        return int(value)

    def number(self, field: str, low: float | None = None, high: float | None = None) -> float | None:
        """A number, in bounds."""
        value = self.all.get(field)
        if value is None:
            return None
        try:
            number = float(value) if isinstance(value, int | float) and value is not True else math.nan
        except OverflowError:
            number = math.nan
        fits = math.isfinite(number) and value is not False
        if not fits or (low is not None and number < low) or (high is not None and number > high):
            raise self.wrong(field, f"a number{_bounds(low, high)}")
        return number

    def choice(self, field: str, values: Collection[str]) -> str | None:
        """One of some words."""
        value = self.all.get(field)
        if value is not None and value not in tuple(values):
            raise self.wrong(field, f"one of {', '.join(values)}")
        return None if value is None else str(value)

    def stops(self, field: str) -> tuple[str, ...]:
        """Texts that end an answer: one, or a list."""
        value = self.all.get(field)
        if value is None:
            return ()
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise self.wrong(field, "a text or a list of texts")
        return tuple(stop for stop in stops if stop)

    def _typed(self, field: str, kind: type[T], expected: str) -> T | None:
        value = self.all.get(field)
        if value is not None and not isinstance(value, kind):
            raise self.wrong(field, expected)
        return value


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return "" if low is None else f" of {low:g} or more"
