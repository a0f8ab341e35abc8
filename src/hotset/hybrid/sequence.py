"""A sequence whose keys and values lie where each layer's attention is computed."""

from collections.abc import Sequence as ListOf
from dataclasses import replace

from hotset.backends.cpu import CpuSequence
from hotset.core.batch import Batch, Chooser, Sequence
from hotset.hybrid.device import Device


class HybridSequence:
    """Two sequences behind one length; see `Sequence`. The host's has the choosers of all layers.

    Each half has the keys and values of the layers whose attention is there.
    """

    def __init__(self, device: Device, on_device: Sequence, on_host: CpuSequence) -> None:
        self._device = device
        self.on_device = on_device
        self.on_host = on_host
        self._length = on_host.length

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self.on_host.capacity

    @property
    def choosers(self) -> ListOf[Chooser | None]:
        return self.on_host.choosers

    def reusable(self, length: int) -> int:
        length = min(length, self._length)
        while True:  # until both halves can
            both = min(half.reusable(length) for half in (self.on_device, self.on_host))
            if both == length:
                return length
            length = both

    @property
    def undoable(self) -> int:
        return min(self.on_device.undoable, self.on_host.undoable)

    def rewind(self, length: int) -> None:
        for half in (self.on_device, self.on_host):
            half.rewind(min(length, half.length))
        self._length = length

    def save(self) -> bool:
        saved = [half.save() for half in (self.on_device, self.on_host)]
        return any(saved)

    def forget(self, length: int) -> None:
        self.on_device.forget(length)
        self.on_host.forget(length)

    @property
    def saved_bytes(self) -> int:
        return self.on_device.saved_bytes + self.on_host.saved_bytes

    def limit_saved(self, nbytes: int) -> None:
        total = self.saved_bytes
        for half in (self.on_device, self.on_host):
            half.limit_saved(nbytes * half.saved_bytes // max(total, 1))

    def fork(self) -> "HybridSequence":
        self.settle()
        with self._device.guard():
            return HybridSequence(self._device, self.on_device.fork(), self.on_host.fork())

    def advance(self, count: int) -> None:
        self.on_device.advance(count)
        self.on_host.advance(count)
        self._length += count

    def settle(self) -> None:
        """Forget what a call that was interrupted between the two halves has left in one of them."""
        if self.on_device.length != self._length or self.on_host.length != self._length:
            self.rewind(self._length)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of `HybridSequence`s as one of their halves on the device and one of those on the host."""
    sequences = []
    for span in batch.spans:
        if not isinstance(span.sequence, HybridSequence):
            raise TypeError("a hybrid model needs its own sequences")
        span.sequence.settle()
        sequences.append(span.sequence)
    pairs = list(zip(batch.spans, sequences, strict=True))
    return (
        Batch(batch.tokens, tuple(replace(span, sequence=s.on_device) for span, s in pairs)),
        Batch(batch.tokens, tuple(replace(span, sequence=s.on_host) for span, s in pairs)),
    )
