"""A device's stream that is the calling thread: what is said is done at once.

The host's worker runs beside it on a thread of its own, as it would beside a GPU.
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotset.hybrid.device import DeviceMemoryError, Event


class Memory:
    """So many bytes, of which each thing that is alive holds some."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    def hold(self, owner: object, nbytes: int) -> None:
        """Count so many bytes for as long as their owner is alive."""
        self.used += nbytes
        weakref.finalize(owner, self._release, nbytes)

    def check(self, what: str, nbytes: int) -> None:
        """Raise `DeviceMemoryError` unless so many bytes are free."""
        if self.used + nbytes > self.capacity:
            raise DeviceMemoryError(
                f"the device is full: {what} needs {nbytes / 1e6:.1f} MB, and {self.used / 1e6:.1f} of "
                f"{self.capacity / 1e6:.1f} MB are taken; ask for a smaller budget (--vram)"
            )

    def _release(self, nbytes: int) -> None:
        self.used -= nbytes


class _Past:
    """An event of a stream that is never behind."""

    def wait(self) -> None:
        pass

    def passed(self) -> bool:
        return True


class HostStream:
    """The part of `Device` that has to do with time, and memory that both sides see."""

    def __init__(self) -> None:
        self.pinned_memory = Memory(1 << 62)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        array = np.zeros(shape, dtype)
        self.pinned_memory.hold(array, array.nbytes)
        return array

    def synchronize(self) -> None: ...

    def mark(self, *, spin: bool = False) -> Event:
        return _Past()

    def follow(self, event: Event) -> None:
        event.wait()

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def guard(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        return step
