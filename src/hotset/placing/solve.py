"""Chooses one option of each part of a model, so that a token is fastest within a budget of bytes.

This is a multiple-choice knapsack whose items stand in a chain: where neighbours have different homes, the
hidden vector moves, which costs time. Two views of it, neither of which knows of models:

- `lower_bound` puts a price in milliseconds on a byte; at a given price the best choice is found item by item
  along the chain. The price at which the budget is full bounds any choice's time (the Lagrangian dual). Its
  choice is what greedily taking bytes by the milliseconds that each saves arrives at, and some per cent from
  the best: a layer's next good option can be nearly a layer away.
- `tabulated`, from which plans are made, is dynamic programming over the budget. Tests hold it against a
  mixed-integer program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hotset.placing.costs import DEVICE, HOST, Options

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_UNITS, _COARSE_UNITS = 1 << 15, 1 << 12
"""Parts into which all bytes of a problem are divided for `tabulated`, more or less."""
_TRIED, _MOST_UNITS = 1 << 25, 1 << 19
"""Few options are tried with smaller units: what rounding up wastes counts most in small models."""


@dataclass(frozen=True)
class Solution:
    """An option for each item."""

    homes: tuple[int, ...]
    options: tuple[int, ...]
    """Indices into the items' tables."""
    bytes: int
    ms: float
    bound: float
    """No choice within the same budget takes fewer milliseconds than this."""


class Problem:
    """The items' options without those that others beat in bytes and time."""

    def __init__(self, items: Sequence[Options], switch_ms: float) -> None:
        self.items = items
        self.switch_ms = switch_ms
        count = len(items)
        kept = [[_staircase(item.bytes[home], item.ms[home]) for home in (HOST, DEVICE)] for item in items]
        self.kept = kept
        self.bytes = [[items[i].bytes[home][kept[i][home]] for home in (HOST, DEVICE)] for i in range(count)]
        self.ms = [[items[i].ms[home][kept[i][home]] for home in (HOST, DEVICE)] for i in range(count)]
        width = max(len(k) for pair in kept for k in pair)
        self._bytes = np.zeros((count, 2, width))
        self._ms = np.full((count, 2, width), np.inf)
        for i in range(count):
            for home in (HOST, DEVICE):
                self._bytes[i, home, : len(self.bytes[i][home])] = self.bytes[i][home]
                self._ms[i, home, : len(self.ms[i][home])] = self.ms[i][home]

    @cached_property
    def unit(self) -> float:
        """Bytes of a unit, such as a slab or a part of it, to which rounding options up wastes little."""
        options = sum(len(part) for pair in self.ms for part in pair)
        usual = self.most_bytes / min(max(_UNITS, _TRIED // options), _MOST_UNITS)
        steps = np.unique(np.concatenate([np.diff(part) for pair in self.bytes[:4] for part in pair]))
        parts = np.divide.outer(steps[steps > 0].astype(np.float64), np.arange(1, 65)).ravel()
        candidates = np.append(parts[(parts >= usual / 4) & (parts <= usual)][:256], usual)
        some = np.concatenate([part[:: len(part) // 8 + 1] for pair in self.bytes for part in pair])
        wasted = [(np.ceil(some / unit) * unit - some).mean() for unit in candidates]
        return float(candidates[int(np.argmin(wasted))])

    @property
    def most_bytes(self) -> int:
        """Of the options that take most."""
        return sum(int(max(item.bytes[HOST].max(), item.bytes[DEVICE].max())) for item in self.items)

    def at_price(self, price: float) -> "Choice":
        """The choice of the least ``ms + price * bytes``."""
        costs = self._ms + price * self._bytes
        best = costs.argmin(axis=2)
        onward = self._chained(costs.min(axis=2)[::-1])[::-1]
        homes, home = [], HOST  # the token's embedding lies on the host
        for of_host, of_device in onward.tolist():
            moving = self.switch_ms if home == HOST else -self.switch_ms
            home = HOST if of_host <= of_device + moving else DEVICE
            homes.append(home)
        return Choice(self, homes, [int(best[i, home]) for i, home in enumerate(homes)])

    def least_within(self, budget: int, fits: "Choice", exceeds: "Choice") -> F64:
        """(N, 2, K): a lower bound on the time of any choice within the budget that has that option.

        `fits` and `exceeds` are those of `lower_bound`, at whose price this is predicted.
        """
        price = (fits.ms - exceeds.ms) / max(exceeds.bytes - fits.bytes, 1)
        costs = self._ms + price * self._bytes
        least = costs.min(axis=2)
        start = np.array([[0.0, self.switch_ms]])
        before = self._chained(np.concatenate([least[:1] + start, least[1:]]))
        after = self._chained(least[::-1])[::-1]
        through: F64 = costs + (before + after - 2 * least)[:, :, None] - price * budget
        return through

    def _chained(self, least: F64) -> F64:
        """(N, 2): the least sum of a chain's costs up to each item, by that item's home."""
        sums = [tuple(least[0].tolist())]
        for on_host, on_device in least[1:].tolist():
            host, device = sums[-1]
            sums.append(
                (on_host + min(host, device + self.switch_ms), on_device + min(device, host + self.switch_ms))
            )
        return np.array(sums)


class Choice:
    """An option (of those kept) for each item of a problem."""

    def __init__(self, problem: Problem, homes: list[int], kept: list[int]) -> None:
        self.problem, self.homes, self.kept = problem, homes, kept
        pairs = list(enumerate(zip(homes, kept, strict=True)))
        self.bytes = sum(int(problem.bytes[i][home][k]) for i, (home, k) in pairs)
        switches = sum(a != b for a, b in zip([HOST, *homes], homes, strict=False))
        self.ms = sum(float(problem.ms[i][home][k]) for i, (home, k) in pairs) + switches * problem.switch_ms

    def solution(self, bound: float) -> Solution:
        """The choice in the items' own indices."""
        kept = self.problem.kept
        options = tuple(
            int(kept[i][h][k]) for i, (h, k) in enumerate(zip(self.homes, self.kept, strict=True))
        )
        return Solution(tuple(self.homes), options, self.bytes, self.ms, min(bound, self.ms))


def lower_bound(problem: Problem, budget: int) -> tuple[float, Choice, Choice]:
    """A bound on the time of any choice within the budget, and the two choices that meet at its price.

    The first fits the budget; the second takes more bytes, or is the first again where the fastest choice of
    all fits.
    """
    fastest = problem.at_price(0.0)
    if fastest.bytes <= budget:
        return fastest.ms, fastest, fastest
    fits = problem.at_price(1e12)  # milliseconds a byte: nothing is worth that
    exceeds = fastest
    while True:
        price = (fits.ms - exceeds.ms) / (exceeds.bytes - fits.bytes)
        between = problem.at_price(price)
        line = fits.ms + price * fits.bytes
        if between.ms + price * between.bytes >= line * (1 - 1e-12):
            return line - price * budget, fits, exceeds
        if between.bytes <= budget:
            fits = between
        else:
            exceeds = between


def tabulated(problem: Problem, budget: int) -> Solution:
    """The fastest choice by dynamic programming, each item's bytes rounded up to units of the problem's.

    A larger budget never makes it slower: what fits fewer units fits more. A table of coarse units comes
    first: options that cannot be part of anything faster than its choice are not tried in the fine one.
    """
    bound, fits, exceeds = lower_bound(problem, budget)
    if exceeds is fits:  # the fastest of all
        return fits.solution(bound)
    fine, coarse = problem.unit, problem.most_bytes / _COARSE_UNITS
    everything = [[np.arange(len(part)) for part in pair] for pair in problem.ms]
    # What keeps this budget also keeps the whole one when every item is rounded up to a fine unit.
    known = _table(problem, max(0.0, budget - len(problem.items) * fine), coarse, everything)
    least = problem.least_within(budget, fits, exceeds)
    promising = [
        [
            np.flatnonzero(least[i, home, : len(part)] <= known.ms * (1 + 1e-9))
            for home, part in enumerate(pair)
        ]
        for i, pair in enumerate(problem.ms)
    ]
    return _table(problem, budget, fine, promising).solution(bound)


def _table(problem: Problem, budget: float, unit: float, options: Sequence[Sequence[I64]]) -> "Choice":
    """The fastest choice among some options of each item, by home, whose bytes are rounded up to units."""
    capacity = int(budget / unit)
    # The least ms of the items so far within 0, 1, 2 ... units, for either home of the last.
    reached = [np.zeros(capacity + 1), np.full(capacity + 1, np.inf)]
    trail = []
    for i, by_home in enumerate(options):
        steps = []
        for home in (HOST, DEVICE):
            units = np.ceil(problem.bytes[i][home][by_home[home]] / unit).astype(np.int64)
            few = units <= capacity
            few[:-1] &= units[1:] > units[:-1]  # the last of as many units is the fastest
            steps.append((by_home[home][few], units[few]))
        trail.append((reached, steps))
        reached = []
        for home, (kept, units) in enumerate(steps):
            before = np.minimum(trail[-1][0][home], trail[-1][0][1 - home] + problem.switch_ms)
            best = np.full(capacity + 1, np.inf)
            for n, ms in zip(units.tolist(), problem.ms[i][home][kept].tolist(), strict=True):
                np.minimum(best[n:], before[: capacity + 1 - n] + ms, out=best[n:])
            reached.append(best)
    home = HOST if reached[HOST][-1] <= reached[DEVICE][-1] else DEVICE
    left = capacity
    homes, chosen = [], []
    for i, (arrived, steps) in reversed(list(enumerate(trail))):
        kept, units = steps[home]
        fit = units <= left
        before = left - units[fit]
        so_far = np.minimum(arrived[home][before], arrived[1 - home][before] + problem.switch_ms)
        k = int((so_far + problem.ms[i][home][kept[fit]]).argmin())
        homes.append(home)
        chosen.append(int(kept[fit][k]))
        left -= int(units[fit][k])
        stays = arrived[home][left] <= arrived[1 - home][left] + problem.switch_ms
        home = home if stays else 1 - home
    return Choice(problem, homes[::-1], chosen[::-1])


def _staircase(nbytes: I64, ms: F64) -> I64:
    """Indices of options with, by ascending bytes, ever less time."""
    order = np.lexsort((ms, nbytes))
    least = np.minimum.accumulate(ms[order])
    faster = np.append(True, least[1:] < least[:-1])
    return np.asarray(order[faster], np.int64)
