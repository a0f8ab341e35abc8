"""Arrays that are torch tensors, and the GPU backend's parts, for a GPU and for the interpreter."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from hotset.backends.building import Backend
from hotset.backends.contract import F32, Array, ExpertsSpec, Head, NeuronFFNSpec, Norm
from hotset.backends.gpu import GpuBackend
from hotset.backends.gpu.backend import GpuHead
from hotset.backends.gpu.kernels.attention import SPAN
from hotset.backends.gpu.kernels.recurrent import WALK
from hotset.backends.gpu.packets import GpuPackets
from hotset.backends.gpu.state import Block, GpuView, Spans, describe
from hotset.core.batch import Batch
from hotset.hybrid.device import AddNormed, Packet, Predict, ResidentExperts, Slot

RECORDED_ROWS = (1, 2, 4, 8)
"""Steps are recorded for so many rows; a batch takes the smallest that it fits in."""

MOST_LOOKS = 1 << 17 if sys.platform == "win32" else 1 << 26
"""A kernel looks so often for a packet, a microsecond or two each, before it gives up: minutes, but fractions
of a second on Windows, whose watchdog ends kernels after two."""


class Packets(Protocol):
    """Packets (T, N) between both sides, as int64 tensors."""

    def begin(self, control: Any) -> None:
        """Begin a step: `control` (2,), int32 and pinned, has its number and its rows."""

    def send(self, x: Any, packet: Any) -> None:
        """Write the step's rows of x (T, N)."""

    def send_chosen(self, scores: Any, cutoffs: Any, packet: Any, *, values: bool) -> None:
        """Write the step's rows of a choice of neurons; see `Device.send_chosen`."""

    def receive(self, packet: Any, out: Any, *, add: bool) -> None:
        """Await the step's rows, and copy them, or add them, to out (T, N)."""


class TorchArrays(ABC):
    """The part of `Device` that has to do with arrays; copies are in stream order where memory is pinned."""

    def __init__(self, torch_device: str) -> None:
        self._gpu = GpuBackend(torch_device)
        self.backend: Backend = self._gpu
        self.torch_device = torch.device(torch_device)
        self._told = self.pinned((1,), np.uint32)
        self.packets: Packets = GpuPackets(self._gpu.gpu, as_tensor(self._told), MOST_LOOKS)

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]: ...

    @abstractmethod
    def record(self, step: Callable[[], None]) -> Callable[[], None]: ...

    def empty(self, shape: tuple[int, ...]) -> Array:
        return torch.empty(shape, dtype=torch.float32, device=self.torch_device)

    def upload(self, x: F32, out: Array) -> None:
        out.copy_(torch.from_numpy(x), non_blocking=True)

    def download(self, x: Array, out: F32) -> None:
        torch.from_numpy(out).copy_(x, non_blocking=True)

    def assign(self, x: Array, out: Array) -> None:
        out.copy_(x)

    def zero(self, out: Array) -> None:
        out.zero_()

    def add(self, x: Array, out: Array) -> None:
        out.add_(x)

    def scale(self, x: Array, factor: float) -> None:
        x.mul_(factor)

    def begin(self, control: NDArray[np.uint32]) -> None:
        self.packets.begin(as_tensor(control))

    def send(self, x: Array, to: Packet) -> None:
        self.packets.send(x, as_tensor(to))

    def send_chosen(self, scores: Array, cutoffs: Array, to: Packet, *, values: bool = False) -> None:
        self.packets.send_chosen(scores, cutoffs, as_tensor(to), values=values)

    def receive(self, x: Packet, out: Array, *, add: bool) -> None:
        self.packets.receive(as_tensor(x), out, add=add)

    def gave_up(self, number: int) -> bool:
        return int(self._told[0]) == number

    def resident_experts(self, spec: ExpertsSpec, experts: Sequence[int]) -> ResidentExperts:
        return self._gpu.resident_experts(spec, experts)

    def logits(self, head: Head, x: Array) -> Array:
        if not isinstance(head, GpuHead):
            raise TypeError("the head is another backend's")
        return head.logits(x)

    def normed_adder(self, norm: Norm) -> AddNormed:
        part = self._gpu.norm(norm)
        return lambda x, out: part.forward(x, out, add=True)

    def predictor(self, spec: NeuronFFNSpec) -> Predict:
        scores: Predict = self._gpu.predictor(spec).scores
        return scores

    def gates(self, spec: NeuronFFNSpec) -> Predict:
        values: Predict = self._gpu.gates(spec).values
        return values

    def slot(self) -> Slot:
        gpu_slot = self._gpu.slot()
        return lambda spec, index: gpu_slot.fill(spec)

    def record_batches(self, tell: Callable[[int, GpuView], None]) -> Callable[[Batch], None]:
        return RecordedBatches(self, tell)


def as_tensor(array: NDArray[Any]) -> Any:
    """The same memory as a tensor of signed integers, of which torch has more than of unsigned ones."""
    return torch.from_numpy(array.view(f"i{array.itemsize}"))


class RecordedBatches:
    """A step that is recorded for some numbers of rows, and replayed for any sequences.

    The kernels find a batch's sequences, the addresses of their keys and values among them, in a table on the
    device. It always lies in the same place, and the step begins with copying it from pinned memory, where it
    is written again for each batch. Each row is a span of its own, so that only the number of rows matters;
    those that are left over are spans without rows. Recurrent layers, which walk along a sequence's rows,
    find them in a second table, of no more spans than rows.

    What is launched depends on two more things: the type of the keys and values, and the largest capacity,
    rounded up to a power of two, by which attention splits the keys. Each is a recording of its own.
    """

    def __init__(self, device: TorchArrays, tell: Callable[[int, GpuView], None]) -> None:
        self._device, self._tell = device, tell
        self._written = device.pinned((RECORDED_ROWS[-1], SPAN), np.int64)
        self._written_walks = device.pinned((RECORDED_ROWS[-1], WALK), np.int64)
        self._table, self._walks = (
            torch.zeros(written.shape, dtype=torch.int64, device=device.torch_device)
            for written in (self._written, self._written_walks)
        )
        self._recorded: dict[tuple[int, Any, int], Callable[[], None]] = {}

    def __call__(self, batch: Batch) -> None:
        """Tell the step of a batch of at most `RECORDED_ROWS` rows."""
        described = describe(batch)
        table = described.by_rows()
        rows = next(rows for rows in RECORDED_ROWS if rows >= len(table))
        self._written[:] = 0
        self._written[: len(table)] = table
        self._written_walks[:] = 0
        self._written_walks[: len(described.walks)] = described.walks
        key = rows, described.dtype, described.capacity
        if key not in self._recorded:
            spans = Spans(self._table[:rows], 1, described.capacity)
            block = Block(slice(0, rows), (spans,), self._walks[:rows])
            view = GpuView(rows, described.dtype, described.before, (block,))
            self._recorded[key] = self._device.record(partial(self._tell_view, view))
        self._recorded[key]()

    def _tell_view(self, view: GpuView) -> None:
        self._table.copy_(torch.from_numpy(self._written), non_blocking=True)
        self._walks.copy_(torch.from_numpy(self._written_walks), non_blocking=True)
        self._tell(view.rows, view)
