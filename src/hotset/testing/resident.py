"""The stand-in's mixtures, of which some experts count as resident."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32
from hotset.backends.cpu import CpuExperts


class Slots:
    """Which expert each slot is said to hold, one of them none."""

    def __init__(self, experts: Sequence[int]) -> None:
        self.held: list[int | None] = [*experts, None]

    @property
    def resident(self) -> list[int]:
        """The experts."""
        return [expert for expert in self.held if expert is not None]

    @property
    def spare(self) -> int:
        """The other slot's number."""
        return self.held.index(None)

    def switch(self, leaving: int, coming: int) -> None:
        """The spare slot has an expert in place of one whose slot becomes the spare one."""
        old, new = self.held.index(leaving), self.spare
        self.held[old], self.held[new] = None, coming


class StandInExperts:
    """A CPU's part, of which only those experts are used whose slot has them."""

    def __init__(self, part: CpuExperts, count: int, experts: Sequence[int]) -> None:
        self._part, self._count = part, count
        self._slots = Slots(experts)
        self._memory = list(self._slots.held)

    @property
    def resident(self) -> list[int]:
        return self._slots.resident

    def select(self, x: F32) -> F32:
        return self._part.select(x)

    def add(self, x: F32, out: F32, weights: F32) -> None:
        """A slot that has another expert than it is said to makes all wrong."""
        wrong = any(e not in (None, m) for e, m in zip(self._slots.held, self._memory, strict=True))
        self._part.add(x, out, np.where(self._here(), weights, np.float32(0)))
        if wrong:
            out.fill(np.nan)

    def for_host(self, weights: F32) -> F32:
        return np.where(self._here(), -weights, weights)

    def write(self, expert: int) -> None:
        self.fill(self._slots.spare, expert)

    def fill(self, slot: int, expert: int | None) -> None:
        """What is in a slot's memory; None: a part of something."""
        self._memory[slot] = expert

    def switch(self, leaving: int, coming: int) -> None:
        self._slots.switch(leaving, coming)

    def _here(self) -> NDArray[np.bool_]:
        here = np.zeros(self._count, np.bool_)
        here[self.resident] = True
        return here
