"""A stand-in whose streams are behind, as a GPU's are: threads do what it is told, a random while later.

Nothing is done earlier than its stream's order and the events that it waits for ask, but anything else may
come first: a second stream, the host's worker, the caller. What is stored in packets arrives in pieces, in
any order, maybe after what the stream does next. Pinned memory that is given back is poisoned, so that a copy
which is still to come does harm. What holds on this device relies on streams, events and the numbers of
packets alone.
"""

import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotset import _native
from hotset.backends.contract import (
    F32,
    FFN,
    Array,
    AttentionSpec,
    BatchView,
    ExpertsSpec,
    FFNSpec,
    Head,
    HeadSpec,
    LatentSpec,
    LayerInputSpec,
    NeuronFFNSpec,
    Norm,
    RecurrentSpec,
)
from hotset.hybrid.device import AddNormed, Event, Packet, Predict, ResidentExperts, Slot
from hotset.hybrid.ffn import build_ffn
from hotset.testing.resident import Slots, StandInExperts
from hotset.testing.stand_in import StandInDevice, chosen_row

_DELAYS = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0001, 0.001)
"""Seconds before an operation, drawn at random."""

_HANG_SECONDS = 30


class Stream:
    """Operations in their order, on a thread."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._told: deque[Callable[[], object]] = deque()
        self._wake = threading.Condition()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def tell(self, operation: Callable[[], object]) -> None:
        """Have an operation done after those before."""
        with self._wake:
            self._told.append(operation)
            self._wake.notify()

    def check(self) -> None:
        """Raise what an operation has raised."""
        if self._error:
            raise RuntimeError("an operation of a late stream failed") from self._error

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._told)
                operation = self._told.popleft()
            if delay := self._random.choice(_DELAYS):
                time.sleep(delay)
            try:
                operation()
            except BaseException as error:
                self._error = self._error or error


class _Stores:
    """Words on their way to the host, in pieces that arrive in any order; one packet's steps in theirs."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._coming: dict[int, deque[list[tuple[Any, Any, Any]]]] = {}
        self._wake = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def tell(self, words: NDArray[np.uint64], packet: Packet) -> None:
        """Have the words of a packet's rows arrive."""
        order = self._numbers.permutation(words.size)
        target = packet.reshape(-1)
        pieces = [(target, piece, words.reshape(-1)[piece]) for piece in np.array_split(order, 4)]
        with self._wake:
            self._coming.setdefault(target.ctypes.data, deque()).append(pieces)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._coming)
                address = self._random.choice(list(self._coming))
                steps = self._coming[address]
                target, piece, words = steps[0].pop(self._random.randrange(len(steps[0])))
                if not steps[0]:
                    steps.popleft()
                if not steps:
                    del self._coming[address]
            if delay := self._random.choice(_DELAYS):
                time.sleep(delay)
            target[piece] = words


class _End:
    """The end of a stream as it was."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._past = stream, threading.Event()
        stream.tell(self._past.set)

    def wait(self) -> None:
        if not self._past.wait(_HANG_SECONDS):
            raise TimeoutError("a late stream hangs")
        self._stream.check()

    def passed(self) -> bool:
        return self._past.is_set()


class _Pinned:
    """Memory that outlives the arrays in it: NumPy takes it as another's."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.__array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "version": 3,
        }


class _LatePart:
    """A part whose work is told to the stream."""

    def __init__(self, device: "LateStandIn", part: Callable[[], Any]) -> None:
        self._device, self._part = device, part

    def forward(self, x: F32, out: F32, view: BatchView = None) -> None:
        self._device.tell(lambda: self._part().forward(x, out, view))

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        self._device.tell(lambda: self._part().neurons(x, gate, h))


class _LateMixture(_LatePart):
    """A mixture whose work is told to the stream."""

    def __init__(self, device: "LateStandIn", part: Any, count: int) -> None:
        super().__init__(device, lambda: part)
        self._mixture, self._count = part, count

    def select(self, x: F32) -> F32:
        late = self._device.empty((len(x), self._count))
        self._device.tell(lambda: np.copyto(late, self._mixture.select(x)))
        return late

    def add(self, x: F32, out: F32, weights: F32) -> None:
        self._device.tell(lambda: self._mixture.add(x, out, weights))


class _LateExperts(_LateMixture):
    """The same of one whose experts are not all resident."""

    def __init__(self, device: "LateStandIn", part: StandInExperts, count: int) -> None:
        super().__init__(device, part, count)
        self._own, self.slots = part, Slots(part.resident)
        """As they will be when the stream has come here."""

    @property
    def resident(self) -> list[int]:
        return self.slots.resident

    def for_host(self, weights: F32) -> F32:
        late = self._device.empty(weights.shape)
        self._device.tell(lambda: np.copyto(late, self._mixture.for_host(weights)))
        return late

    def write(self, expert: int) -> None:
        slot = self.slots.spare
        self._device.tell(lambda: self._own.fill(slot, None))
        self._device.tell(lambda: self._own.fill(slot, expert))

    def switch(self, leaving: int, coming: int) -> None:
        self.slots.switch(leaving, coming)
        self._device.tell(lambda: self._own.switch(leaving, coming))


class _LateHead:
    def __init__(self, device: "LateStandIn", head: Head, vocab_size: int) -> None:
        self._device, self.head, self.vocab_size = device, head, vocab_size

    def forward(self, x: F32) -> F32:
        self._device.synchronize()
        return self.head.forward(x)

    def normed(self, x: F32) -> F32:
        self._device.synchronize()
        return self.head.normed(x)


class _Poison:
    """What is in a slot while its next piece comes."""

    def forward(self, x: F32, out: F32, view: BatchView = None) -> None:
        out.fill(np.nan)


class _LateBackend:
    """The stand-in's backend; what it builds is late, all else is its own."""

    def __init__(self, device: "LateStandIn", backend: Any) -> None:
        self._device, self._backend = device, backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def attention(self, spec: AttentionSpec, index: int = 0) -> _LatePart:
        part = self._backend.attention(spec, index)
        return _LatePart(self._device, lambda: part)

    def ffn(self, spec: FFNSpec) -> _LatePart:
        part = self._backend.ffn(spec)
        return _LatePart(self._device, lambda: part)

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0) -> _LatePart:
        part = self._backend.neuron_ffn(spec, index)
        return _LatePart(self._device, lambda: part)

    def latent_attention(self, spec: LatentSpec, index: int = 0) -> _LatePart:
        part = self._backend.latent_attention(spec, index)
        return _LatePart(self._device, lambda: part)

    def recurrent(self, spec: RecurrentSpec, index: int = 0) -> _LatePart:
        part = self._backend.recurrent(spec, index)
        return _LatePart(self._device, lambda: part)

    def experts(self, spec: ExpertsSpec, index: int = 0) -> Any:
        return _LateMixture(self._device, self._backend.experts(spec, index), spec.shape.count)

    def layer_input(self, spec: LayerInputSpec) -> Any:
        part = self._backend.layer_input(spec)
        return _LatePart(self._device, lambda: part)

    def head(self, spec: HeadSpec) -> _LateHead:
        return _LateHead(self._device, self._backend.head(spec), spec.output.weight.shape[0])

    def copy(self, x: F32) -> F32:
        copy = np.full_like(x, np.nan)
        self._device.assign(x, copy)
        return copy

    def rows(self, x: F32, rows: NDArray[np.intp]) -> F32:
        picked = np.full((len(rows), x.shape[1]), np.nan, np.float32)
        self._device.tell(lambda: np.copyto(picked, x[rows]))
        return picked


class LateStandIn(StandInDevice):
    """A stand-in with two streams that are behind."""

    name = "late stand-in"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stream, self.copies, self._stores = Stream(seed), Stream(seed + 1), _Stores(seed + 2)
        self._aside = threading.local()
        self._own = self.backend
        self.backend = _LateBackend(self, self._own)
        self._memory: list[NDArray[np.uint8]] = []

    def tell(self, operation: Callable[[], object]) -> None:
        """Have an operation done in the order of the stream that the calling thread speaks to."""
        self.present().tell(operation)

    def present(self) -> Stream:
        """That stream."""
        return self.copies if getattr(self._aside, "now", False) else self.stream

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.zeros(nbytes + 64, np.uint8)
        self._memory.append(memory)
        array = np.asarray(_Pinned(memory.ctypes.data, shape, dtype))
        weakref.finalize(array, memory.fill, 0xFF)  # every number is NaN
        return array

    def empty(self, shape: tuple[int, ...]) -> F32:
        return np.full(shape, np.nan, np.float32)

    def upload(self, x: F32, out: F32) -> None:
        x = _raw(x)
        self.tell(lambda: np.copyto(out, x))

    def download(self, x: F32, out: F32) -> None:
        out = _raw(out)
        self.tell(lambda: np.copyto(out, x))

    def assign(self, x: F32, out: F32) -> None:
        self.tell(lambda: np.copyto(out, x))

    def zero(self, out: F32) -> None:
        self.tell(lambda: out.fill(0))

    def add(self, x: F32, out: F32) -> None:
        self.tell(lambda: np.add(out, x, out=out))

    def scale(self, x: F32, factor: float) -> None:
        self.tell(lambda: super(LateStandIn, self).scale(x, factor))

    def normed_adder(self, norm: Norm) -> AddNormed:
        add = super().normed_adder(norm)
        return lambda x, out: self.tell(lambda: add(x, out))

    def predictor(self, spec: NeuronFFNSpec) -> Predict:
        return self._late(super().predictor(spec), spec)

    def gates(self, spec: NeuronFFNSpec) -> Predict:
        return self._late(super().gates(spec), spec)

    def _late(self, predict: Predict, spec: NeuronFFNSpec) -> Predict:

        def scores(x: F32) -> F32:
            late = self.empty((len(x), spec.up.weight.shape[0]))
            self.tell(lambda: np.copyto(late, predict(x)))
            return late

        return scores

    def logits(self, head: Head, x: Array) -> Array:
        if not isinstance(head, _LateHead):
            raise TypeError("the head is another backend's")
        late = self.empty((len(x), head.vocab_size))
        self.tell(lambda: np.copyto(late, head.head.forward(x)))
        return late

    def resident_experts(self, spec: ExpertsSpec, experts: Sequence[int]) -> ResidentExperts:
        part = self._metered.resident_experts(spec, experts)
        return _LateExperts(self, part, spec.shape.count)

    def begin(self, control: NDArray[np.uint32]) -> None:
        control = _raw(control)
        self.tell(lambda: super(LateStandIn, self).begin(control))

    def send(self, x: F32, to: Packet) -> None:
        to = _raw(to)
        self.tell(lambda: self._store(x[: self.rows], to[: self.rows]))

    def send_chosen(self, scores: F32, cutoffs: F32, to: Packet, *, values: bool = False) -> None:
        to = _raw(to)

        def store() -> None:
            for row in range(self.rows):
                for words, said in chosen_row(scores[row], cutoffs[row], values=values):
                    self._store(said[None], to[row : row + 1, words])

        self.tell(store)

    def _store(self, x: F32, to: Packet) -> None:
        words = np.zeros(x.shape, np.uint64)
        _native.write_packet(np.ascontiguousarray(x), words, self.number)
        self._stores.tell(words, to)

    def receive(self, x: Packet, out: F32, *, add: bool) -> None:
        x = _raw(x)
        self.tell(lambda: super(LateStandIn, self).receive(x, out, add=add))

    def slot(self) -> Slot:
        """A piece is built from its staged bytes when its copy comes."""
        held: list[FFN] = []

        def fill(spec: FFNSpec | NeuronFFNSpec, index: int) -> FFN:
            def begin() -> None:
                held[:] = [_Poison()]  # type: ignore[list-item]

            def end() -> None:
                held[:] = [build_ffn(spec, self._own, index)]

            self.tell(begin)
            self.tell(end)
            return _LatePart(self, lambda: held[0])

        return fill

    def synchronize(self) -> None:
        for stream in (self.stream, self.copies):
            _End(stream).wait()

    def mark(self, *, spin: bool = False) -> Event:
        return _End(self.present())

    def follow(self, event: Event) -> None:
        self.tell(event.wait)

    def aside(self) -> AbstractContextManager[None]:
        return self._speak_aside()

    @contextmanager
    def _speak_aside(self) -> Iterator[None]:
        self._aside.now = True
        try:
            yield
        finally:
            self._aside.now = False


def _raw(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, which does not keep a pinned array from being given back."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, _Pinned):
        return array
    return np.asarray(_Pinned(array.ctypes.data, array.shape, array.dtype))
