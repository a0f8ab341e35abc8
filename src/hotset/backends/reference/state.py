"""What the reference backend keeps of a sequence."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32
from hotset.backends.cutoff import Cutoff
from hotset.core.batch import Work
from hotset.core.config import Recurrent


class ReferenceChooser:
    """The chooser of one layer: its cut-off, and what was computed."""

    def __init__(self, place: Cutoff) -> None:
        self.place = place
        self.work = Work()

    @property
    def cutoff(self) -> float:
        return self.place.value

    @cutoff.setter
    def cutoff(self, value: float) -> None:
        self.place = Cutoff(value)


@dataclass
class RecurrentState:
    """One recurrent layer's state after some position."""

    sums: F32
    """(value heads, numbers of a key, numbers of a value)."""
    inputs: F32
    """(kernel - 1, channels): what the convolution reaches back to."""

    @classmethod
    def empty(cls, shape: Recurrent) -> "RecurrentState":
        """That of a new sequence."""
        of = shape.sums
        sums = np.zeros((of.n_value_heads, of.key_dim, of.value_dim), np.float32)
        return cls(sums, np.zeros((shape.kernel - 1, shape.channels), np.float32))

    def copy(self) -> "RecurrentState":
        """A state of its own."""
        return RecurrentState(self.sums.copy(), self.inputs.copy())


class ReferenceSequence:
    """Keys and values of each layer as two arrays (capacity, heads, head size); see `Sequence`."""

    def __init__(
        self,
        keys: list[NDArray[np.floating]],
        values: list[NDArray[np.floating]],
        capacity: int,
        recurrent: tuple[Recurrent, ...] = (),
    ) -> None:
        self.keys, self.values = keys, values
        self.length = 0
        self.capacity = capacity
        self.choosers: list[ReferenceChooser | None] = []
        self.states = [RecurrentState.empty(shape) for shape in recurrent]
        self.next_states = list(self.states)
        """After what was computed, but not advanced."""
        self.saved = {0: self.states}
        """By length."""

    def reusable(self, length: int) -> int:
        if not self.states or length >= self.length:
            return min(length, self.length)
        return max(at for at in self.saved if at <= length)

    @property
    def undoable(self) -> int:
        return 0 if self.states else self.capacity - self.length

    def rewind(self, length: int) -> None:
        if self.states and length < self.length:
            self.states = self.saved[length]
            self.saved = {at: states for at, states in self.saved.items() if at <= length}
        self.next_states = list(self.states)
        self.length = length
        for chooser in filter(None, self.choosers):
            chooser.place.rewind(length)

    def save(self) -> bool:
        if not self.states or self.length in self.saved:
            return False
        self.saved[self.length] = self.states
        return True

    def forget(self, length: int) -> None:
        if length:
            self.saved.pop(length, None)

    @property
    def saved_bytes(self) -> int:
        kept = (states for at, states in self.saved.items() if at)
        return sum(state.sums.nbytes + state.inputs.nbytes for states in kept for state in states)

    def limit_saved(self, nbytes: int) -> None:
        """The oldest first."""
        for at in sorted(self.saved)[1:]:
            if self.saved_bytes > nbytes:
                del self.saved[at]

    def fork(self) -> "ReferenceSequence":
        keys, values = ([kept.copy() for kept in all] for all in (self.keys, self.values))
        forked = ReferenceSequence(keys, values, self.capacity)
        forked.length = self.length
        forked.choosers = [c and ReferenceChooser(c.place.copy()) for c in self.choosers]
        forked.states = self.states
        forked.next_states = list(self.states)
        forked.saved = dict(self.saved)
        return forked

    def advance(self, count: int) -> None:
        self.length += count
        self.states = self.next_states
        self.next_states = list(self.states)


def own_sequence(sequence: object) -> ReferenceSequence:
    """The sequence as this backend made it; `TypeError` if it did not."""
    if not isinstance(sequence, ReferenceSequence):
        raise TypeError("the sequence is another backend's")
    return sequence
