"""The stand-in's mixtures, of which some experts count as resident."""

from collections.abc import Sequence

import numpy as np

from hotset.backends.contract import F32
from hotset.backends.cpu import CpuExperts


class StandInExperts:
    """A CPU's part, of which only those experts are used."""

    def __init__(self, part: CpuExperts, count: int, experts: Sequence[int]) -> None:
        self._part = part
        self.resident = list(experts)
        self._here = np.zeros(count, np.bool_)
        self._here[self.resident] = True

    def select(self, x: F32) -> F32:
        return self._part.select(x)

    def add(self, x: F32, out: F32, weights: F32) -> None:
        self._part.add(x, out, np.where(self._here, weights, np.float32(0)))

    def for_host(self, weights: F32) -> F32:
        return np.where(self._here, -weights, weights)

    def swap(self, leaving: int, coming: int) -> None:
        self.resident[self.resident.index(leaving)] = coming
        self._here[leaving], self._here[coming] = False, True
