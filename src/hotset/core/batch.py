"""What one call of a model computes: rows of several sequences, one span a sequence."""

from collections.abc import Iterator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 128
"""Rows of a batch that a GPU's part computes at once, so that what it needs on the way is little."""

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """What decoded rows computed in one layer's FFN that is stored by neuron, summed over rows.

    Rows of lossless spans are not counted: they say nothing of what choosing leaves out.
    """

    rows: int = 0
    """Rows of batches (tokens)."""
    read: int = 0
    """Neurons whose row of down was read."""
    fired: int = 0
    """Of these, neurons that were not zero."""
    chosen: int = 0
    """Neurons of which any row was read that could be left out: where a predictor chooses, also those that
    turned out to be zero once their row of gate was read."""
    audits: int = 0
    """Rows that were audited."""
    kept: float = 0.0
    """Shares of the activation that the cut-off would have kept of these rows, summed."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.rows + other.rows,
            self.read + other.read,
            self.fired + other.fired,
            self.chosen + other.chosen,
            self.audits + other.audits,
            self.kept + other.kept,
        )


class Chooser(Protocol):
    """What one layer has learnt of one sequence: where to cut off, and what it did."""

    cutoff: float
    """A neuron is computed where its score is at least this; audits may move it."""

    @property
    def work(self) -> Work:
        """What was computed in this sequence so far."""


class Sequence(Protocol):
    """One conversation's state in a model: keys and values, and what its layers have learnt of it.

    Made by `hotset.model.transformer.Transformer.sequence`; belongs to that model alone.
    """

    @property
    def length(self) -> int:
        """Positions filled so far."""

    @property
    def capacity(self) -> int:
        """Positions there is room for."""

    def reusable(self, length: int) -> int:
        """The longest prefix, at most `length` positions, that every layer can go back to.

        With recurrent layers that is the present length, one that was saved (`save`), some that are a few
        positions before these, or 0.
        """

    @property
    def undoable(self) -> int:
        """How many more positions may be filled with every length from the present one on `reusable`."""

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on, a length that `reusable` gave.

        At 0 the sequence is as new, but for what it counted (`work`).
        """

    def save(self) -> bool:
        """Keep what is needed to come back to the present length, where a layer cannot go back by itself.

        False: it could be come back to anyway, as where every layer can. Raises `MemoryError`.
        """

    def forget(self, length: int) -> None:
        """Keep no more what was saved at a length."""

    @property
    def saved_bytes(self) -> int:
        """Bytes of what was saved."""

    def limit_saved(self, nbytes: int) -> None:
        """Forget what was saved until that takes at most so many bytes: what is nearest to others first."""

    def fork(self) -> "Sequence":
        """A sequence with the same past and a future of its own. Raises `MemoryError`."""

    def advance(self, count: int) -> None:
        """Count `count` more positions as filled, once every layer has written them."""

    @property
    def choosers(self) -> ListOf["Chooser | None"]:
        """What each layer has learnt of this sequence; None where it chooses no neurons."""


@dataclass(frozen=True)
class Span:
    """One sequence's rows in a batch, at positions ``sequence.length + 0 .. count - 1``."""

    sequence: Sequence
    count: int
    lossless: bool = False
    """Neurons are left out only where they are exactly zero: prompts, a sequence's first positions."""
    logits: int = 1
    """For how many of its last rows logits are wanted; 0: a prompt cut in pieces."""
    hidden: F32 | None = field(default=None, compare=False)
    """(n, D): where to write the last layer's hidden vectors, normalised, of its last n rows."""


@dataclass(frozen=True)
class Batch:
    """Tokens (T,) of all spans, one span's after the other's; a sequence has one span at most."""

    tokens: I32
    spans: tuple[Span, ...]

    @classmethod
    def of(
        cls, sequence: Sequence, tokens: I32, *, lossless: bool = False, logits: int | None = 1
    ) -> "Batch":
        """A batch of one sequence; `logits` None: after every token."""
        count = len(tokens)
        return cls(tokens, (Span(sequence, count, lossless, count if logits is None else logits),))

    @cached_property
    def positions(self) -> I32:
        """Each row's position in its sequence (T,)."""
        starts = [(span.sequence.length, span.count) for span in self.spans]
        return np.array([at for start, count in starts for at in range(start, start + count)], np.int32)

    def rows(self) -> Iterator[tuple[Span, slice]]:
        """Each span and its rows."""
        end = 0
        for span in self.spans:
            yield span, slice(end, end + span.count)
            end += span.count

    @cached_property
    def wanted(self) -> NDArray[np.intp]:
        """The rows whose logits are wanted, in their order."""
        wanted = [row for span, rows in self.rows() for row in range(rows.stop - span.logits, rows.stop)]
        return np.array(wanted, np.intp)

    @property
    def all_wanted(self) -> bool:
        """Whether logits are wanted of every row, as in decoding."""
        return all(span.logits == span.count for span in self.spans)

    def pieces(self, rows: int, lossless_below: int) -> Iterator["Batch"]:
        """The same as batches of at most `rows` rows, to be computed in turn.

        A span that is cut goes on in the next piece, once its sequence has advanced. Positions below
        `lossless_below` are lossless, whatever their span says.
        """
        early_rows = any(not span.lossless and span.sequence.length < lossless_below for span in self.spans)
        if len(self.tokens) <= rows and not early_rows:  # nothing to cut: decoding
            yield self
            return
        spans: list[Span] = []
        start = end = 0
        for span, base in [(span, span.sequence.length) for span in self.spans]:
            left, position = span.count, base
            while left:
                early = not span.lossless and position < lossless_below
                count = min(left, rows - (end - start), lossless_below - position if early else left)
                left, position, end = left - count, position + count, end + count
                logits = min(max(0, span.logits - left), count)
                hidden = _last(span.hidden, left, count)
                spans.append(Span(span.sequence, count, span.lossless or early, logits, hidden))
                if left or end - start == rows:
                    yield Batch(self.tokens[start:end], tuple(spans))
                    spans, start = [], end
        if spans:
            yield Batch(self.tokens[start:end], tuple(spans))


def _last(hidden: F32 | None, left: int, count: int) -> F32 | None:
    """Of a span's `hidden`, what belongs to `count` rows that `left` others follow."""
    if hidden is None or len(hidden) <= left:
        return None
    end = len(hidden) - left
    return hidden[max(0, end - count) : end]
