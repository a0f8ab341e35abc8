"""Room for the sequences of a model, and what of one sequence another can begin with.

A sequence that is no longer used is kept, as long as there is room, for the next one that begins in the same
way. Room is counted by what is touched: a sequence reserves addresses for all its positions, but takes memory
only as they are first written, and has it until it is dropped::

    in use   [=========-->             ]   = holds tokens, - is soon to
    kept     [=====~~~~                ]   ~ was written before the sequence was rewound
              counted    not counted
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from hotset.core.batch import I32, Sequence

_BLOCK = 64
"""Positions that a sequence's room grows by."""

_MOST_KEPT = 32
"""Each is compared with every new prompt, and holds addresses for all its positions."""

_WORTH_COPYING = 16
"""Fewer positions are computed again, rather than taken from a sequence that goes on otherwise; more if that
is long, as all of it is copied."""

_WORTH_WAITING = 32
"""A prompt waits for another that is being read if that saves computing at least so many tokens."""


@dataclass(eq=False)
class Slot:
    """A sequence and its tokens: those of its positions, and those that are to follow."""

    sequence: Sequence
    tokens: I32
    """(capacity,), of which `known` are given."""
    known: int = 0
    prompt: int = 0
    """So many of the first tokens are a prompt's."""
    touched: int = 0
    """Positions that were ever written, by those who gave it back."""
    counted: int = 0
    """Positions that take memory, or soon will."""
    saved: int = 0
    """The last length that was saved to come back to."""

    @property
    def length(self) -> int:
        """Positions filled."""
        return self.sequence.length

    @property
    def left(self) -> int:
        """Known tokens that are not computed; none, or fewer, where more was: a draft."""
        return self.known - self.sequence.length

    def append(self, token: int) -> None:
        """Add a token that is to follow; another one's position, and all after it, is forgotten."""
        if self.left < 0 and self.tokens[self.known] != token:
            self.touched = max(self.touched, self.length)
            self.sequence.rewind(self.known)
        self.tokens[self.known] = token
        self.known += 1

    def draft(self, tokens: I32) -> None:
        """Write tokens that may follow after those that are known."""
        self.tokens[self.known : self.known + len(tokens)] = tokens


class Pool:
    """Gives sequences to prompts and takes them back, within a number of bytes. For one thread at a time."""

    def __init__(
        self,
        new: Callable[[], Sequence],
        *,
        capacity: int,
        bytes_at: Callable[[int], int],
        room: int,
        approximate: bool = False,
        saved_room: int = 0,
    ) -> None:
        """Room for sequences that `new` makes, of `capacity` positions each; for one there always is.

        `bytes_at` says what a sequence takes once so many of its positions were written. With `approximate`
        the positions of an answer differ from those of the same tokens in a prompt, so no other request
        builds on them. Where layers are recurrent, a sequence may take `saved_room` bytes more for states to
        come back to (`save`); 0: every layer can go back by itself.
        """
        self.capacity = capacity
        self.room = max(room, bytes_at(capacity))
        self._new = new
        self._bytes_at = bytes_at
        self._approximate = approximate
        self._saved_room = saved_room
        self._used: list[Slot] = []
        self._kept: list[Slot] = []  # the one that was used longest ago first

    @property
    def saves(self) -> bool:
        """Whether sequences cannot go back but to what was saved."""
        return self._saved_room > 0

    @property
    def bytes(self) -> int:
        """What all sequences take."""
        return self._bytes_of(self._used) + self._bytes_of(self._kept)

    @property
    def used(self) -> int:
        """Sequences in use."""
        return len(self._used)

    @property
    def kept(self) -> int:
        """Sequences that are kept for others to begin with."""
        return len(self._kept)

    def take(self, tokens: I32, *, prompt: int, positions: int, reuse: bool = True) -> Slot | None:
        """A sequence for these tokens, of which the first `prompt` are a prompt's; None: no room at present.

        `positions` is what to make room for now. The sequence begins with the longest prefix that another has
        computed, but never with the last token, whose logits are wanted; without `reuse` with none. Raises
        `MemoryError` where there is no memory for any sequence.
        """
        start, source = self._longest(tokens[:-1]) if reuse else (0, None)
        if source and start < min(source.length, _WORTH_COPYING + source.length // 64):
            start, source = 0, None
        slot = self._begin(start, source, positions)
        if slot is None:
            return None
        slot.tokens[: len(tokens)] = tokens
        slot.known = len(tokens)
        slot.prompt = prompt
        slot.saved = slot.length
        slot.counted = max(slot.counted, positions)
        self._used.append(slot)
        return slot

    def grow(self, slot: Slot, positions: int) -> bool:
        """Make room for so many positions of a sequence in use; False: there is none at present."""
        if positions > slot.counted:
            positions = min(-(-positions // _BLOCK) * _BLOCK, self.capacity)
            need = self._bytes_at(positions) - self._bytes_at(slot.counted)
            fits = self._make_room(need)
            if not fits and self._saved_room:  # what others may begin with makes way first
                slot.sequence.limit_saved(0)
                fits = self._make_room(need)
            if not fits:
                return False
            slot.counted = positions
        return True

    def save(self, slot: Slot) -> None:
        """Save where a sequence in use stands, as far as there is room: others may begin there."""
        if self._saved_room and slot.length > slot.saved:
            with suppress(MemoryError):
                slot.sequence.save()
            slot.saved = slot.length
            slot.sequence.limit_saved(self._saved_room)
            if not self._make_room(0):
                slot.sequence.limit_saved(0)

    def give_back(self, slot: Slot, *, keep: bool = True) -> None:
        """Take back a sequence; without `keep` it is dropped."""
        self._used.remove(slot)
        slot.touched = slot.counted = max(slot.touched, slot.length)
        if keep and (length := slot.sequence.reusable(self._shared(slot))):
            slot.sequence.rewind(length)
            slot.known = length
            slot.prompt = min(slot.prompt, length)
            self._kept.append(slot)
            del self._kept[:-_MOST_KEPT]

    def is_coming(self, tokens: I32) -> bool:
        """Whether a prompt that is being read will soon have much more of these tokens than any has now."""
        start, _ = self._longest(tokens[:-1])
        reading = [slot for slot in self._used if slot.length < slot.prompt]
        coming = max((_common(slot.tokens[: slot.prompt], tokens[:-1]) for slot in reading), default=0)
        return coming >= start + _WORTH_WAITING

    def clear(self) -> None:
        """Drop what is kept."""
        self._kept.clear()

    def _shared(self, slot: Slot) -> int:
        """Positions of a sequence that are the same whoever computes them."""
        return min(slot.length, slot.prompt) if self._approximate else slot.length

    def _longest(self, tokens: I32) -> tuple[int, Slot | None]:
        """The most of these tokens that a sequence has computed, and that sequence; of equals, one kept."""
        best, source = 0, None
        for slot in (*self._used, *self._kept):
            length = _common(slot.tokens[: self._shared(slot)], tokens)
            if length >= max(best, 1) and (length := slot.sequence.reusable(length)) >= max(best, 1):
                best, source = length, slot
        return best, source

    def _begin(self, start: int, source: Slot | None, positions: int) -> Slot | None:
        """A sequence with the first `start` positions of `source`."""
        if source is None:
            return self._make(self._new, positions)
        copied = max(positions, source.length)
        if source not in self._kept:
            slot = self._make(source.sequence.fork, copied)
        else:
            # It is given as it is where nothing of it is lost by that, or where there is no room for a copy.
            self._kept.remove(source)
            own = self._bytes_at(source.counted)
            slot = None
            if start < source.length:
                with suppress(MemoryError):
                    slot = self._make(source.sequence.fork, copied, besides=own)
            if slot or not self._make_room(max(self._bytes_at(positions), own)):
                self._kept.append(source)
            else:
                slot = source
        if slot:
            slot.sequence.rewind(start)
        return slot

    def _make(self, make: Callable[[], Sequence], positions: int, besides: int = 0) -> Slot | None:
        """A sequence of so many positions, if there is room for it and for `besides` more bytes."""
        while self._make_room(self._bytes_at(positions) + besides):
            try:
                sequence = make()
            except MemoryError:
                if not self._kept:
                    if not self._used:
                        raise
                    return None
                del self._kept[0]
            else:
                tokens = np.zeros(self.capacity, np.int32)
                return Slot(sequence, tokens, touched=sequence.length, counted=positions)
        return None

    def _make_room(self, need: int) -> bool:
        """Drop what was used longest ago until so many bytes are free; none if that cannot be."""
        if self._bytes_of(self._used) + need > self.room:
            return False
        while self.bytes + need > self.room:
            del self._kept[0]
        return True

    def _bytes_of(self, slots: list[Slot]) -> int:
        saved = sum(slot.sequence.saved_bytes for slot in slots) if self._saved_room else 0
        return saved + sum(self._bytes_at(slot.counted) for slot in slots)


def _common(a: I32, b: I32) -> int:
    """How many first tokens are the same."""
    count = min(len(a), len(b))
    differ = a[:count] != b[:count]
    first = int(differ.argmax()) if count else 0
    return first if count and differ[first] else count
