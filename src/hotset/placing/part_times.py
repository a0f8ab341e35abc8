"""How long a model's parts take, as they were timed on one machine.

A part is known by a text that says what it is: the types and shapes of its tensors, and what else its time
depends on. So models share the times of parts that are alike, and a model's own parts are timed only once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import HotsetError
from hotset.formats.tensor import Tensor

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Times of a part, one decoded token each; between and beyond them they lie on lines."""

    hot: int
    """Of an FFN: units on the device. 0 where there is no such number."""
    n: tuple[float, ...]
    """Ascending: tokens read before, of attention; neurons or experts that the host computes, of an FFN."""
    us: tuple[float, ...]
    """Microseconds."""

    def at(self, n: F64 | float) -> F64:
        """Microseconds at other numbers."""
        xs, ys = np.asarray(self.n), np.asarray(self.us)
        x = np.asarray(n, np.float64)
        if len(xs) == 1:
            return np.full(x.shape, ys[0])
        i = np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2)
        line: F64 = ys[i] + (x - xs[i]) * (ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i])
        return np.maximum(line, 0.0)


PartTime: TypeAlias = tuple[Row, ...]
"""Ascending by `hot`: one row, or those of an FFN."""
TimedParts: TypeAlias = Mapping[str, PartTime]
"""By the texts that parts are known by."""


def ffn_us(time: PartTime, size: int, hot: I64, n: F64) -> F64:
    """Microseconds of an FFN of `size` units of which ``hot`` (K,) are on the device.

    The host computes ``n`` (K,) of the others. Where the FFN is split, the time is that of both sides
    together, with their hand-shake, on lines between the rows of split ones.
    """
    split = [row for row in time if 0 < row.hot < size] or list(time)
    tables = np.stack([row.at(n) for row in split])  # (R, K)
    if len(split) == 1:
        us = tables[0]
    else:
        hots = np.array([row.hot for row in split])
        i = np.clip(np.searchsorted(hots, hot) - 1, 0, len(hots) - 2)
        k = np.arange(len(hot))
        us = tables[i, k] + (hot - hots[i]) * (tables[i + 1, k] - tables[i, k]) / (hots[i + 1] - hots[i])
    for row in time:
        if row.hot in (0, size):
            us = np.where(hot == row.hot, row.at(n), us)
    found: F64 = np.maximum(us, 0.0)
    return found


def described(what: str, tensors: Mapping[str, Tensor], *facts: object) -> str:
    """The text that a part is known by: its matrices, and other facts."""
    matrices = (
        f"{name.removesuffix('.weight')} {tensor.type.name} {'x'.join(map(str, tensor.shape))}"
        for name, tensor in sorted(tensors.items())
        if len(tensor.shape) > 1
    )
    return "; ".join([f"{what}: {', '.join(matrices)}", *map(str, facts)])


def whole_step(parts: Iterable[str]) -> str:
    """The text that a step of all of a model's parts is known by."""
    return f"whole step: {sha256(chr(10).join(sorted(set(parts))).encode()).hexdigest()[:12]}"


def ratio(times: TimedParts, step: str) -> float:
    """What a whole step took of what its parts add up to; 1 where it was not timed."""
    row = times[step][0] if step in times else None
    return row.us[0] / row.n[0] if row and row.n[0] > 0 else 1.0


def times_as_json(times: TimedParts) -> dict[str, Any]:
    """What `read_times` reads."""
    return {
        name: [{"hot": row.hot, "n": list(row.n), "us": list(row.us)} for row in rows]
        for name, rows in times.items()
    }


def read_times(document: Any, where: str) -> dict[str, PartTime]:
    """Times of parts as a profile has them; `HotsetError`, which names the place, for anything else."""
    if not isinstance(document, dict):
        raise HotsetError(f"{where}: expected times by part, found {document!r}")
    return {name: _part(rows, f"{where}.{name}") for name, rows in document.items()}


def _part(rows: Any, where: str) -> PartTime:
    if not isinstance(rows, list) or not rows:
        raise HotsetError(f"{where}: expected rows of times, found {rows!r}")
    found = tuple(_row(row, where) for row in rows)
    if any(a.hot >= b.hot for a, b in pairwise(found)):
        raise HotsetError(f"{where}: expected rows with ever more hot units")
    return found


def _row(row: Any, where: str) -> Row:
    keys = ("hot", "n", "us")
    if not isinstance(row, dict) or set(row) != set(keys):
        raise HotsetError(f"{where}: expected {', '.join(keys)}, found {row!r}")
    hot, n, us = (row[key] for key in keys)
    if not isinstance(hot, int) or isinstance(hot, bool) or hot < 0:
        raise HotsetError(f"{where}.hot: expected an integer from 0, found {hot!r}")
    for name, numbers in (("n", n), ("us", us)):
        if not isinstance(numbers, list) or not all(map(_sensible, numbers)):
            raise HotsetError(f"{where}.{name}: expected numbers from 0, found {numbers!r}")
    if not n or len(n) != len(us) or any(a >= b for a, b in pairwise(n)):
        raise HotsetError(
            f"{where}: expected as many times as ascending numbers, found {len(n)} and {len(us)}"
        )
    return Row(hot, tuple(map(float, n)), tuple(map(float, us)))


def _sensible(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
