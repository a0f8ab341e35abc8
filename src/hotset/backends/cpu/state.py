"""A sequence on the CPU, and a batch as the native parts take it."""

from collections.abc import Sequence

from hotset import _native
from hotset.core.batch import Batch, Work


class CpuChooser:
    """One layer's cut-off and counts, kept by the native core."""

    def __init__(self, native: _native.Chooser) -> None:
        self._native = native

    @property
    def cutoff(self) -> float:
        return self._native.cutoff

    @cutoff.setter
    def cutoff(self, value: float) -> None:
        self._native.cutoff = value

    @property
    def work(self) -> Work:
        return Work(*self._native.work)


class CpuSequence:
    """A sequence of the native core."""

    def __init__(self, native: _native.Sequence) -> None:
        self.native = native
        self.choosers: Sequence[CpuChooser | None] = [
            CpuChooser(chooser) if chooser else None for chooser in native.choosers
        ]

    @property
    def length(self) -> int:
        return self.native.length

    @property
    def capacity(self) -> int:
        return self.native.capacity

    def reusable(self, length: int) -> int:
        return self.native.reusable(length)

    @property
    def undoable(self) -> int:
        return self.native.undoable

    def rewind(self, length: int) -> None:
        self.native.rewind(length)

    def save(self) -> bool:
        return self.native.save()

    def forget(self, length: int) -> None:
        self.native.forget(length)

    @property
    def saved_bytes(self) -> int:
        return self.native.saved_bytes

    def limit_saved(self, nbytes: int) -> None:
        self.native.limit_saved(nbytes)

    def fork(self) -> "CpuSequence":
        """What is filled is copied."""
        return CpuSequence(self.native.fork())

    def advance(self, count: int) -> None:
        self.native.advance(count)


def native_batch(batch: Batch) -> _native.Batch:
    """A batch of this backend's sequences for its parts, from the sequences' present lengths on."""
    sequences, counts, lossless = [], [], []
    for span in batch.spans:
        if not isinstance(span.sequence, CpuSequence):
            raise TypeError("the sequence is another backend's")
        sequences.append(span.sequence.native)
        counts.append(span.count)
        lossless.append(span.lossless)
    return _native.Batch(sequences, counts, lossless)
