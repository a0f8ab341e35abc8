"""One sequence's keys and values, each layer's where its attention is computed."""

from collections.abc import Callable

from hotset import _native
from hotset.backends.contract import KVCache


class HybridKVCache:
    """Two caches behind one length; either may be missing where no layer needs it. See `KVCache`."""

    def __init__(self, on_device: KVCache | None, on_host: _native.KVCache | None, capacity: int) -> None:
        self.on_device = on_device
        self.on_host = on_host
        self.capacity = capacity
        self.recorded: Callable[[], None] | None = None
        """The device's side of a step with this cache, as the device has recorded it."""
        self._length = 0

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self._length

    def of(self, on_device: bool) -> KVCache:
        """The cache of the layers whose attention is there."""
        kv = self.on_device if on_device else self.on_host
        if kv is None:
            raise ValueError("no layer's attention is there")
        return kv

    def settle(self) -> None:
        """Forget what a call that was interrupted between the two caches has left in one of them."""
        if any(kv.length != self._length for kv in self._caches()):
            self.truncate(self._length)

    def advance(self, count: int) -> None:
        """See `KVCache`."""
        for kv in self._caches():
            kv.advance(count)
        self._length += count

    def truncate(self, length: int) -> None:
        """See `KVCache`."""
        for kv in self._caches():
            kv.truncate(min(length, kv.length))
        self._length = length

    def _caches(self) -> list[KVCache]:
        return [kv for kv in (self.on_device, self.on_host) if kv is not None]
