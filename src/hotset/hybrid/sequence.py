"""A sequence whose keys and values lie where each layer's attention is computed."""

from collections.abc import Callable
from collections.abc import Sequence as ListOf

from hotset.backends.cpu import CpuSequence
from hotset.core.batch import Chooser, Sequence


class HybridSequence:
    """Two sequences behind one length; see `Sequence`. The host's has the choosers of all layers."""

    def __init__(self, on_device: Sequence | None, on_host: CpuSequence, capacity: int) -> None:
        self.on_device = on_device
        self.on_host = on_host
        self.capacity = capacity
        self.recorded: Callable[[], None] | None = None
        """The device's side of a step with this sequence, as the device has recorded it."""
        self._length = 0

    @property
    def length(self) -> int:
        """See `Sequence`."""
        return self._length

    @property
    def choosers(self) -> ListOf[Chooser | None]:
        """See `Sequence`."""
        return self.on_host.choosers

    def of(self, on_device: bool) -> Sequence:
        """The half of the layers whose attention is there."""
        half = self.on_device if on_device else self.on_host
        if half is None:
            raise ValueError("no layer's attention is there")
        return half

    def settle(self) -> None:
        """Forget what a call that was interrupted between the two halves has left in one of them."""
        if any(half.length != self._length for half in self._halves()):
            self.rewind(self._length)

    def reusable(self, length: int) -> int:
        """See `Sequence`."""
        return min(length, self._length, *(half.reusable(length) for half in self._halves()))

    def fork(self) -> "HybridSequence":
        """See `Sequence`."""
        on_device = self.on_device and self.on_device.fork()
        forked = HybridSequence(on_device, self.on_host.fork(), self.capacity)
        forked._length = self._length
        return forked

    def advance(self, count: int) -> None:
        """See `Sequence`."""
        for half in self._halves():
            half.advance(count)
        self._length += count

    def rewind(self, length: int) -> None:
        """See `Sequence`."""
        for half in self._halves():
            half.rewind(min(length, half.length))
        self._length = length

    def _halves(self) -> list[Sequence]:
        return [half for half in (self.on_device, self.on_host) if half is not None]
