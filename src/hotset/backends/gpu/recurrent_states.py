"""What recurrent layers keep of a sequence on the GPU."""

from typing import Any

from hotset.backends.gpu.device import Gpu
from hotset.core.config import Recurrent
from hotset.core.errors import HotsetError


class RecurrentStates:
    """States after some positions, each one tensor with the parts of all layers, one after the other.

    There are two: kernels read the present one and write the next, and `advance` makes them change places. A
    state that was saved, or that a fork has too, is shared: it is never written again, and another takes its
    place. So nothing is copied, and without saving nothing is allocated.
    """

    def __init__(self, gpu: Gpu, shapes: tuple[Recurrent, ...]) -> None:
        """Raises `HotsetError` for layers of different shapes."""
        if len(set(shapes)) > 1:
            raise HotsetError("the GPU backend has no recurrent layers of different shapes yet")
        self._gpu = gpu
        self._size = sum(shape.state_size for shape in shapes)
        self._present, self._next = self._new(), self._new()
        self._shared = False
        """Whether the present one is somebody else's too."""
        self._before: int | None = None
        """The length of the state that was present before: it is in the next one's place."""
        self._saved: dict[int, Any] = {}
        """By length."""

    @property
    def any(self) -> bool:
        """Whether there are such layers."""
        return self._size > 0

    def addresses(self, length: int) -> tuple[int, int]:
        """Where the state after `length` positions is, 0 where it is zero, and where to write the next.

        Raises `RuntimeError`, torch's, where there is no memory for that.
        """
        if not self.any:
            return 0, 0
        if self._next is None:
            self._next = self._new()
        self._before = None
        return (self._present.data_ptr() if length else 0), self._next.data_ptr()

    def advance(self, length: int) -> None:
        """What was written becomes the present state, that of more than `length` positions."""
        if self.any:
            written = self._new() if self._next is None else self._next
            self._next, self._before = (None, None) if self._shared else (self._present, length)
            self._present, self._shared = written, False

    def reusable(self, length: int, filled: int) -> int:
        """The longest prefix of `filled` positions, at most `length`, that can be come back to."""
        if not self.any or length >= filled:
            return min(length, filled)
        kept = (0, *self._saved, *(() if self._before is None else (self._before,)))
        best: int = max(at for at in kept if at <= length)
        return best

    def rewind(self, length: int) -> None:
        """Go back to a length that `reusable` gave."""
        self._saved = {at: state for at, state in self._saved.items() if at <= length}
        if length in self._saved:
            self._present, self._shared = self._saved[length], True
        elif length and length == self._before:
            self._present, self._next = self._next, None if self._shared else self._present
            self._shared = False
        elif length:
            raise ValueError(f"there is no state to go back to at {length}")
        self._before = None

    def save(self, length: int) -> bool:
        """Keep the present state, that after `length` positions."""
        if not self.any or not length or length in self._saved:
            return False
        self._saved[length], self._shared = self._present, True
        return True

    def forget(self, length: int) -> None:
        """Keep it no more."""
        self._saved.pop(length, None)

    @property
    def saved_bytes(self) -> int:
        """Of what is saved; the present state counts, as it is soon another."""
        return 4 * self._size * len(self._saved)

    def limit_saved(self, nbytes: int) -> None:
        """As on the CPU: those go first whose neighbours are nearest, but the last two stay, if they may."""
        while self.saved_bytes > nbytes:
            at = sorted(self._saved)
            gaps = [after - before for before, after in zip([0, *at], at[1:], strict=False)][:-1]
            del self._saved[at[gaps.index(min(gaps)) if gaps else 0]]

    def fork(self) -> "RecurrentStates":
        """The same states, for another sequence. Raises `RuntimeError`, torch's."""
        forked = RecurrentStates(self._gpu, ())
        forked._size = self._size
        forked._present, forked._saved = self._present, dict(self._saved)
        forked._next = self._new()
        forked._shared = self._shared = True
        return forked

    def _new(self) -> Any:
        return self._gpu.empty(self._size)
