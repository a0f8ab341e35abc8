"""A sequence on the CPU: native keys and values, and each layer's chooser."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hotset import _native
from hotset.core.batch import Batch, Work


class CpuChooser:
    """See `hotset.core.batch.Chooser`."""

    def __init__(self, cutoff: float) -> None:
        self.start = self.cutoff = cutoff
        self.recall_seen = math.nan
        self.work = Work()

    @contextmanager
    def lent_to(self, ffn: _native.NeuronFFN) -> Iterator[None]:
        """The FFN chooses by this cut-off, moves it and counts for it meanwhile."""
        ffn.cutoff = self.cutoff
        before = ffn.counts()
        yield
        rows, read, fired = (b - a for a, b in zip(before, ffn.counts(), strict=True))
        self.cutoff, self.recall_seen = ffn.cutoff, ffn.recall_seen
        self.work = Work(self.work.rows + rows, self.work.read + read, self.work.fired + fired)


class CpuSequence:
    """See `hotset.core.batch.Sequence`."""

    def __init__(self, kv: _native.KVCache, cutoffs: Sequence[float | None]) -> None:
        self.kv = kv
        self.choosers = [None if cutoff is None else CpuChooser(cutoff) for cutoff in cutoffs]

    @property
    def length(self) -> int:
        """See `Sequence`."""
        return self.kv.length

    @property
    def capacity(self) -> int:
        """See `Sequence`."""
        return self.kv.capacity

    def reusable(self, length: int) -> int:
        """See `Sequence`: every prefix is."""
        return min(length, self.length)

    def rewind(self, length: int) -> None:
        """See `Sequence`."""
        self.kv.truncate(length)
        for chooser in self.choosers:
            if length == 0 and chooser:
                chooser.cutoff = chooser.start

    def fork(self) -> "CpuSequence":
        """See `Sequence`; what is filled is copied."""
        forked = CpuSequence(self.kv.fork(), [c.start if c else None for c in self.choosers])
        for chooser, new in zip(self.choosers, forked.choosers, strict=True):
            if chooser and new:
                new.cutoff, new.recall_seen = chooser.cutoff, chooser.recall_seen
        return forked

    def advance(self, count: int) -> None:
        """See `Sequence`."""
        self.kv.advance(count)


@dataclass(frozen=True)
class CpuView:
    """A batch for the CPU's parts: of each span the sequence, its rows, and whether it is lossless."""

    spans: list[tuple[CpuSequence, slice, bool]]

    @classmethod
    def of(cls, batch: Batch) -> "CpuView":
        """The view of a batch of this backend's sequences."""
        spans, row = [], 0
        for span in batch.spans:
            if not isinstance(span.sequence, CpuSequence):
                raise TypeError("the sequence is another backend's")
            spans.append((span.sequence, slice(row, row + span.count), span.lossless))
            row += span.count
        return cls(spans)

    def native_spans(self) -> list[tuple[_native.KVCache, int, bool]]:
        """The spans as a native worker takes them: keys and values, rows, and whether they are lossless."""
        return [(sequence.kv, rows.stop - rows.start, lossless) for sequence, rows, lossless in self.spans]
