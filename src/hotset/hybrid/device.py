"""What the hybrid executor asks of a device: a GPU, or the stand-in that takes its place in tests.

A device has a *stream*: what it is told is done in that order, but maybe later. Where a method says "in
stream order", its effect on host memory may be relied on only after `Device.synchronize` or an `Event`.
Pinned memory is the host's memory as the device can read and write it.

In mid-step both sides speak in *packets*. Each number is stored with the number of its step, in a word that
is written at once, and read until it has the step's number. So nothing depends on the order of stores; a
packet is written by one side only, and again only in the next step.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotset.backends.building import Backend
from hotset.backends.contract import (
    F32,
    FFN,
    Array,
    BatchView,
    ExpertsSpec,
    FFNSpec,
    Head,
    NeuronFFNSpec,
    Norm,
)
from hotset.core.batch import Batch
from hotset.core.errors import HotsetError

Packet: TypeAlias = NDArray[np.uint64]
"""(T, N) words in pinned memory: 32 bits of data, a float32, and above them those of a step's number."""

AddNormed: TypeAlias = Callable[[Array, Array], None]
"""Adds the normalised rows of its first argument to the second, both (T, D) on the device."""

Predict: TypeAlias = Callable[[Array], Array]
"""Scores neurons: of an FFN's input (T, D), before its norm, the scores (T, F), both on the device."""


Slot: TypeAlias = Callable[[FFNSpec | NeuronFFNSpec, int], FFN]
"""Memory of the device's that FFNs take turns in: builds one, with the choosers of a number, in place of
the one before, in stream order."""


class ResidentExperts(Protocol):
    """A mixture whose router, shared expert and some experts are on the device, each in a slot.

    One slot is spare.
    """

    @property
    def resident(self) -> list[int]:
        """The numbers of these experts."""

    def select(self, x: Array) -> Array:
        """Each row's weights (T, E) of all experts, by what the router reads; see `Experts`."""

    def add(self, x: Array, out: Array, weights: Array) -> None:
        """Add the resident experts of positive weights (T, E), and the shared one, of x to out (T, D)."""

    def for_host(self, weights: Array) -> Array:
        """The weights with those of resident experts negated, (T, E): the host does the positive ones."""

    def write(self, expert: int) -> None:
        """Copy an expert to the spare slot, in the order of the stream that the calling thread speaks to."""

    def switch(self, leaving: int, coming: int) -> None:
        """Have the expert in the spare slot take the place of another, whose slot becomes the spare one.

        In stream order, between steps: a step sees all of it or nothing.
        """


class DeviceMemoryError(HotsetError, MemoryError):
    """The device has no memory left for what it was to hold."""


class Event(Protocol):
    """A place in a stream."""

    def wait(self) -> None:
        """Wait until the device has done everything before it."""

    def passed(self) -> bool:
        """Whether it has."""


class Device(Protocol):
    """A device with its memory, its backend and its stream."""

    name: str
    backend: Backend
    """Builds the parts that run on the device, and whose arrays are on it. Raises `DeviceMemoryError`."""

    def free_bytes(self) -> int:
        """Bytes of the device's memory that nobody uses at present."""

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed array in pinned memory, which is freed with it. Raises `HotsetError`."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """An array of the device's, float32, of any content."""

    def upload(self, x: F32, out: Array) -> None:
        """Copy from the host, in stream order: x may change only then."""

    def download(self, x: Array, out: F32) -> None:
        """Copy to the host, in stream order."""

    def assign(self, x: Array, out: Array) -> None:
        """Set out to x, both on the device."""

    def zero(self, out: Array) -> None:
        """Set out to zero."""

    def add(self, x: Array, out: Array) -> None:
        """Add x to out, both (T, D) on the device."""

    def scale(self, x: Array, factor: float) -> None:
        """Multiply x (T, D), on the device."""

    def normed_adder(self, norm: Norm) -> AddNormed:
        """Build a norm that adds."""

    def predictor(self, spec: NeuronFFNSpec) -> Predict:
        """Build the predictor of an FFN's plan."""

    def gates(self, spec: NeuronFFNSpec) -> Predict:
        """Build what tells the activations of an FFN's gates, or of up where it has none."""

    def resident_experts(self, spec: ExpertsSpec, experts: Sequence[int]) -> ResidentExperts:
        """Build a mixture with these experts, at least one, and room for another.

        Raises `DeviceMemoryError`.
        """

    def logits(self, head: Head, x: Array) -> Array:
        """Logits (T, V), on the device, of x (T, D): by a head that its backend has built."""

    def slot(self) -> Slot:
        """Memory that FFNs take turns in; filling it may raise `DeviceMemoryError`."""

    def begin(self, control: NDArray[np.uint32]) -> None:
        """Begin a step, in stream order: `control`, pinned, has its number, which is not 0, and its rows."""

    def send(self, x: Array, to: Packet) -> None:
        """Write the step's rows of x (T, N) to a packet of the host's, in stream order."""

    def send_chosen(self, scores: Array, cutoffs: Array, to: Packet, *, values: bool = False) -> None:
        """Write for the step's rows which neurons their scores (T, F) choose, in stream order.

        A row of the packet has ceil(F / 32) words and behind them F. Where its number in `cutoffs` (T,), on
        the device, is NaN, its scores are written to the F; otherwise to those before, 32 to a word, a bit
        for each neuron: 1 unless its score is less than the cut-off. With `values`, the scores of the
        neurons of a word that have a 1 are written too, one after the other from where the F have its first.
        """

    def receive(self, x: Packet, out: Array, *, add: bool) -> None:
        """Await the step's rows of the host's packet, and copy them, or add them, to out; in stream order.

        The packet and `out` are (T, N); rows of `out` after the step's may become anything.
        """

    def gave_up(self, number: int) -> bool:
        """Whether the device ceased to await a packet in the step of that number, which has ended.

        It does so only where the host leaves it without any answer: that is a fault of its own.
        """

    def synchronize(self) -> None:
        """Wait until everything is done."""

    def mark(self, *, spin: bool = False) -> Event:
        """The present end of the stream; `spin`: whoever waits for it may keep a core busy."""

    def follow(self, event: Event) -> None:
        """What the calling thread says next waits, in its stream, for an event of another stream."""

    def aside(self) -> AbstractContextManager[None]:
        """Within it the calling thread speaks to a second stream, which is there for copies."""

    def guard(self) -> AbstractContextManager[None]:
        """Within it the calling thread speaks to the device's stream: all else here is called within.

        The device's own exceptions for want of memory become `DeviceMemoryError`.
        """

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does the same as `step`, which tells the device the same each time, for less."""

    def record_batches(self, tell: Callable[[int, BatchView], None]) -> Callable[[Batch], None]:
        """The same for what is told of batches: ``tell(rows, view)`` of any batch of the device's sequences.

        `rows` may be more than the batch has; nothing then depends on what is in those after its own.
        """


def chosen_words(neurons: int) -> int:
    """Words of a row in a packet of `Device.send_chosen`."""
    return -(-neurons // 32) + neurons


def zeros(device: Device, shape: tuple[int, ...]) -> Array:
    """Zeros on the device."""
    array = device.empty(tuple(shape))
    device.zero(array)
    return array


def to_device(device: Device, x: F32) -> Array:
    """A copy of x (T, D) on the device; x may change at once."""
    out = device.empty(x.shape)
    device.upload(x, out)
    device.mark().wait()
    return out
