"""Online placement of experts: the device holds those that the subject selects.

Each layer counts how often its experts are selected, with a memory of some hundred tokens. Between steps a
cold expert takes the place of a resident one that is selected clearly less often, as long as the bytes so
moved stay within a rate. What is selected never depends on where an expert lies.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hotset.backends.contract import F32
from hotset.hybrid.device import Device, DeviceMemoryError, Event, ResidentExperts

MEMORY_TOKENS = 256
"""A selection counts half as much after about so many tokens."""
EVERY_TOKENS = 16
"""Swaps are looked for after so many tokens."""
CLEARLY = 1.5
"""A cold expert comes if it was selected so many times as often as the one that leaves, or more."""
LEAST = 2.0
"""And by so many selections more often."""
BUS_SHARE = 0.05
"""Of what the bus can carry, swaps take at most this share."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swap:
    """One expert for another, in one layer's mixture."""

    mixture: int
    leaving: int
    coming: int


class Counts:
    """How often the experts of each mixture were selected recently (mixtures, experts)."""

    def __init__(self, mixtures: int, experts: int) -> None:
        self.counts = np.zeros((mixtures, experts), np.float64)
        self.tokens = 0

    def add(self, selections: F32) -> None:
        """Count a step's selections (mixtures, rows, experts): whatever is not zero."""
        rows = selections.shape[1]
        self.counts *= 0.5 ** (rows / MEMORY_TOKENS)
        self.counts += np.count_nonzero(selections, axis=1)
        self.tokens += rows


def choose_swaps(counts: np.ndarray, resident: Sequence[Sequence[int]], most: int) -> list[Swap]:
    """At most so many swaps, those that save most selections of cold experts first."""
    found: list[tuple[float, Swap]] = []
    for mixture, here in enumerate(resident):
        own = counts[mixture]
        is_here = np.zeros(len(own), np.bool_)
        is_here[list(here)] = True
        coldest = sorted(here, key=lambda expert: (own[expert], expert))
        hottest = [int(e) for e in np.argsort(-own, kind="stable") if not is_here[e]]
        for leaving, coming in zip(coldest, hottest, strict=False):
            gain = own[coming] - own[leaving]
            if gain < LEAST or own[coming] < CLEARLY * own[leaving]:
                break
            found.append((gain, Swap(mixture, leaving, coming)))
    found.sort(key=lambda pair: -pair[0])
    return [swap for _, swap in found[:most]]


class Swaps:
    """Swaps the experts of a model's mixtures, whose steps it is shown. For one thread at a time.

    An expert that comes is copied to its mixture's spare slot, by a thread and the device's second stream,
    while steps go on. When it is there, the first step that begins after that finds it in place of the one
    that leaves. A copy that fails for another reason than want of memory is reported, and is the last one.
    """

    def __init__(
        self,
        mixtures: Sequence[ResidentExperts],
        experts: int,
        expert_bytes: int,
        bytes_per_second: float,
        device: Device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mixtures, self._expert_bytes, self._device = mixtures, expert_bytes, device
        self._rate, self._clock = bytes_per_second, clock
        self._allowed, self._since = 0.0, clock()
        self.counts = Counts(len(mixtures), experts)
        self.done = 0
        """Swaps so far."""
        self._looked = 0
        self._copier = ThreadPoolExecutor(1, "hotset-experts")
        self._coming: dict[int, tuple[Swap, Future[Event]]] = {}
        """By mixture: those whose copy is under way."""
        self._failed = False
        """Whether a copy has failed: none begins after that."""

    def after_step(self, selections: F32) -> None:
        """Count a step's selections (mixtures, rows, experts); end swaps and, if it is time, begin some."""
        self._land()
        self.counts.add(selections)
        if self._failed or self.counts.tokens - self._looked < EVERY_TOKENS:
            return
        self._looked = self.counts.tokens
        now = self._clock()
        # Bytes that were not moved while there was nothing to swap may be moved later, those of a second.
        self._allowed = min(self._allowed + (now - self._since) * self._rate, self._rate)
        self._since = now
        resident = [part.resident for part in self._mixtures]
        for swap in choose_swaps(self.counts.counts, resident, self.counts.counts.size):
            if self._allowed < self._expert_bytes:
                break
            if swap.mixture not in self._coming:  # each has one spare slot
                self._allowed -= self._expert_bytes
                read = self._device.mark()  # nobody reads the spare slot after what has been said so far
                self._coming[swap.mixture] = swap, self._copier.submit(self._copy, swap, read)

    def close(self) -> None:
        """Wait for the copies under way; none begins after that."""
        self._copier.shutdown()

    def _copy(self, swap: Swap, read: Event) -> Event:
        with self._device.guard(), self._device.aside():
            self._device.follow(read)
            self._mixtures[swap.mixture].write(swap.coming)
            return self._device.mark()

    def _report(self, swap: Swap, error: BaseException) -> None:
        if not self._failed:
            _log.warning(
                "expert %d of mixture %d could not be copied to the %s (%s): experts stay where they are",
                *(swap.coming, swap.mixture, self._device.name, error),
            )
        self._failed = True

    def _land(self) -> None:
        """Have the experts that have come take their places."""
        for mixture, (swap, copied) in list(self._coming.items()):
            if not copied.done():
                continue
            if error := copied.exception():
                del self._coming[mixture]
                if not isinstance(error, DeviceMemoryError):  # else others have taken it; another time
                    self._report(swap, error)
            elif copied.result().passed():
                del self._coming[mixture]
                self._device.follow(copied.result())
                self._mixtures[mixture].switch(swap.leaving, swap.coming)
                self.done += 1
