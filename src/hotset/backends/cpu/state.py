"""A sequence on the CPU, and a batch as the native parts take it."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotset import _native
from hotset.core.batch import Batch, Work


class CpuChooser:
    """See `hotset.core.batch.Chooser`."""

    def __init__(self, native: _native.Chooser) -> None:
        self._native = native

    @property
    def cutoff(self) -> float:
        """See `Chooser`."""
        return self._native.cutoff

    @cutoff.setter
    def cutoff(self, value: float) -> None:
        self._native.cutoff = value

    @property
    def work(self) -> Work:
        """See `Chooser`."""
        return Work(*self._native.work)


class CpuSequence:
    """See `hotset.core.batch.Sequence`."""

    def __init__(self, native: _native.Sequence) -> None:
        self.native = native
        self.choosers: Sequence[CpuChooser | None] = [
            CpuChooser(chooser) if chooser else None for chooser in native.choosers
        ]

    @property
    def length(self) -> int:
        """See `Sequence`."""
        return self.native.length

    @property
    def capacity(self) -> int:
        """See `Sequence`."""
        return self.native.capacity

    def reusable(self, length: int) -> int:
        """See `Sequence`."""
        return self.native.reusable(length)

    @property
    def undoable(self) -> int:
        """See `Sequence`."""
        return self.native.undoable

    def rewind(self, length: int) -> None:
        """See `Sequence`."""
        self.native.rewind(length)

    def save(self) -> bool:
        """See `Sequence`."""
        return self.native.save()

    def forget(self, length: int) -> None:
        """See `Sequence`."""
        self.native.forget(length)

    @property
    def saved_bytes(self) -> int:
        """See `Sequence`."""
        return self.native.saved_bytes

    def limit_saved(self, nbytes: int) -> None:
        """See `Sequence`."""
        self.native.limit_saved(nbytes)

    def fork(self) -> "CpuSequence":
        """See `Sequence`; what is filled is copied."""
        return CpuSequence(self.native.fork())

    def advance(self, count: int) -> None:
        """See `Sequence`."""
        self.native.advance(count)


@dataclass(frozen=True)
class CpuView:
    """A batch for the CPU's parts, from its sequences' present lengths on."""

    native: _native.Batch
    lossless: bool
    """Whether all its spans are."""

    @classmethod
    def of(cls, batch: Batch) -> "CpuView":
        """The view of a batch of this backend's sequences."""
        sequences = []
        for span in batch.spans:
            if not isinstance(span.sequence, CpuSequence):
                raise TypeError("the sequence is another backend's")
            sequences.append(span.sequence.native)
        lossless = [span.lossless for span in batch.spans]
        counts = [span.count for span in batch.spans]
        return cls(_native.Batch(sequences, counts, lossless), all(lossless))
