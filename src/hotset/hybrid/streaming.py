"""Prompts of many tokens: cold weights on the device for as long as it computes them, piece by piece.

Two pinned buffers, each with its slot of the device's memory, take turns. While the device computes a piece,
some neurons of a layer, a thread copies the next into the free buffer and, on the device's second stream, to
the device. A slot is written only when that stream has waited for the event of whatever read it last.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import FFN, Array, BatchView, Linear, NeuronFFNSpec
from hotset.hybrid.device import Device, Event
from hotset.hybrid.slices import Spec, ffn_bytes, ffn_matrices, granule, neurons_alone

PIECE_BYTES = 6 << 20
"""Of cold weights that are copied to the device at once: from some MiB on a bus is used fully, and what a
prompt needs now and then lies idle while single tokens are decoded."""

_ALIGNMENT = 64


@dataclass(frozen=True)
class ColdLayer:
    """A layer's cold neurons ``[hot:]``; `spec` makes the layer's whole FFN whenever it is needed."""

    spec: Callable[[], Spec]
    hot: int
    index: int = 0
    """The layer's number, which its choosers have."""


class _Slot:
    """A pinned buffer, the device's memory that it is copied to, and who has used them last."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.staging = device.pinned((nbytes,), np.uint8)
        self.fill = device.slot()
        self.copied: Event | None = None
        """The end of the last copy, before which the buffer must not change."""
        self.read: Event | None = None
        """The end of what read the piece before, until which the device's memory must not change."""


class ColdStream:
    """The cold weights of a model's layers, in the layers' order."""

    def __init__(self, device: Device, layers: Sequence[ColdLayer], piece_bytes: int | None = None) -> None:
        self._device = device
        self._layers = layers
        self._pieces = [_cut(layer, piece_bytes or PIECE_BYTES) for layer in layers]
        largest = max(room for pieces in self._pieces for _, _, room in pieces)
        self._slots = [_Slot(device, largest) for _ in range(2)]

    @contextmanager
    def walk(self) -> Iterator["Walk"]:
        """Through the model once. Whatever happens within, no copy is under way afterwards."""
        with ThreadPoolExecutor(1, "hotset-copies") as copier:
            try:
                counts = [len(pieces) for pieces in self._pieces]
                yield Walk(self._device, counts, self._slots, copier, self._copy)
            finally:
                copier.shutdown(cancel_futures=True)
                self._device.synchronize()

    def _copy(self, layer: int, piece: int, slot: _Slot) -> FFN:
        """A piece to the device, once what lay in its place is needed no more."""
        if slot.copied:
            slot.copied.wait()
        cold = self._layers[layer]
        start, stop, _ = self._pieces[layer][piece]
        # The hot neurons have the bias of down; without any, the first piece has.
        spec = neurons_alone(cold.spec(), start, stop, bias=cold.hot == 0 and piece == 0)
        staged = _staged(spec, slot.staging)
        with self._device.guard(), self._device.aside():
            if slot.read:
                self._device.follow(slot.read)
            part = slot.fill(staged, cold.index)
            slot.copied = self._device.mark()
        return part


class Walk:
    """One time through the layers."""

    def __init__(
        self,
        device: Device,
        counts: Sequence[int],
        slots: Sequence[_Slot],
        copier: ThreadPoolExecutor,
        copy: Callable[[int, int, _Slot], FFN],
    ) -> None:
        self._device, self._slots, self._copier, self._copy = device, slots, copier, copy
        self._order = [(layer, piece) for layer, count in enumerate(counts) for piece in range(count)]
        self._ends = list(accumulate(counts))
        self._layer = self._next = 0
        self._coming = [
            copier.submit(copy, *place, slot) for place, slot in zip(self._order, slots, strict=False)
        ]

    def add(self, x: Array, out: Array, view: BatchView) -> None:
        """Add the sum of the next layer's cold neurons, of x, to out, both (T, D); they may not be the same.

        `view` is of the batch, as the device's backend takes it.
        Raises `DeviceMemoryError` where a piece has no room; the walk cannot go on then.
        """
        while self._next < self._ends[self._layer]:
            turn = self._next % len(self._slots)
            slot = self._slots[turn]
            part = self._coming[turn].result()
            if slot.copied:
                self._device.follow(slot.copied)
            part.forward(x, out, view)
            slot.read = self._device.mark()
            self._next += 1
            following = self._next + len(self._slots) - 1
            if following < len(self._order):
                self._coming[turn] = self._copier.submit(self._copy, *self._order[following], slot)
        self._layer += 1


def _cut(layer: ColdLayer, piece_bytes: int) -> list[tuple[int, int, int]]:
    """A layer's cold neurons in pieces of at most so many bytes: first and last neuron, room in a buffer."""
    spec = layer.spec()
    size, step = spec.up.weight.shape[0], granule(spec)
    count = max(step, int(piece_bytes * size / ffn_bytes(spec)) // step * step)
    matrices = len(ffn_matrices(spec))
    room = -(-ffn_bytes(spec) * count // size) + matrices * _ALIGNMENT
    return [(start, min(start + count, size), room) for start in range(layer.hot, size, count)]


def _staged(spec: Spec, staging: NDArray[np.uint8]) -> Spec:
    """The same FFN with its weights in the buffer."""
    used = 0

    def stage(linear: Linear) -> Linear:
        nonlocal used
        source = linear.weight
        room = staging[used : used + source.nbytes]
        np.copyto(room, source.data)
        used += -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
        return Linear(replace(source, data=room), linear.bias)

    gate, up = spec.gate and stage(spec.gate), stage(spec.up)
    if isinstance(spec, NeuronFFNSpec):
        return replace(spec, gate=gate, up=up, down_t=stage(spec.down_t))
    return replace(spec, gate=gate, up=up, down=stage(spec.down))
