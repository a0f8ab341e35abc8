"""A GPU: pinned memory, two streams, packets, and a step as a graph; NVIDIA's, or AMD's by torch for ROCm.

It has run on an H100 (`benchmarks/results/h100`), but not with packets; what it shares with the
stand-in devices is tested there.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from hotset import _native
from hotset.backends.gpu.packets import GpuPackets
from hotset.core.errors import HotsetError
from hotset.hybrid.device import DeviceMemoryError, Event, Packet
from hotset.hybrid.torch_arrays import Packets, TorchArrays, as_tensor

_LATE_SECONDS = 0.002
"""For so long the probe lets a recorded kernel wait for a packet."""

_PROBE_SECONDS = 1.0
"""After so long a packet of the probe that has not come is taken for lost."""

_PROBE_LOOKS = 1 << 18
_PROBE_WIDTH = 300

_WARM_STEPS = 2
"""Steps before one is recorded: the first compiles kernels, which a recording cannot."""


class _StagedPackets:
    """Packets by copies and host functions, for a GPU whose kernels cannot await what the host writes.

    A kernel writes a packet to the GPU's own memory, and it is copied from there; a host function awaits the
    host's packet, which is then copied. Both sides find the same numbers as without. Stream memory operations
    are not used: a recorded one has the same value at every replay, so it cannot await a step's number.
    """

    def __init__(self, packets: Packets, torch_device: Any) -> None:
        self._packets, self._torch_device = packets, torch_device
        self._launch = _host_function_launcher()
        self._control = 0  # the address of the step's
        self._room: dict[tuple[int, ...], Any] = {}
        self._awaited: dict[tuple[int, ...], NDArray[np.int64]] = {}

    def begin(self, control: Any) -> None:
        self._control = control.data_ptr()
        self._packets.begin(control)

    def send(self, x: Any, packet: Any) -> None:
        room = self._staging(packet)
        self._packets.send(x, room)
        packet.copy_(room, non_blocking=True)

    def send_chosen(self, scores: Any, cutoffs: Any, packet: Any, *, values: bool) -> None:
        room = self._staging(packet)
        self._packets.send_chosen(scores, cutoffs, room, values=values)
        packet.copy_(room, non_blocking=True)

    def receive(self, packet: Any, out: Any, *, add: bool) -> None:
        what = packet.data_ptr(), packet.shape[1], self._control
        numbers = self._awaited.setdefault(what, np.array(what, np.int64))
        function = ctypes.c_void_p(_native.await_function())
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if result := self._launch(stream, function, ctypes.c_void_p(numbers.ctypes.data)):
            raise HotsetError(f"the GPU's driver refuses a host function (error {result}): update it")
        room = self._staging(packet)
        room.copy_(packet, non_blocking=True)
        self._packets.receive(room, out, add=add)

    def _staging(self, packet: Any) -> Any:
        shape = tuple(packet.shape)
        if shape not in self._room:
            self._room[shape] = torch.zeros(shape, dtype=torch.int64, device=self._torch_device)
        return self._room[shape]


def _host_function_launcher() -> Any:
    """The driver's function that has a stream call one of the host's."""
    hip = torch.version.hip is not None
    names = ("libamdhip64.so", "amdhip64.dll") if hip else ("libcuda.so.1", "nvcuda.dll")
    for name in names:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        return driver.hipLaunchHostFunc if hip else driver.cuLaunchHostFunc
    raise HotsetError(f"the GPU's driver ({names[0]}) cannot be loaded: install the vendor's driver")


class _TorchEvent:
    """An event of torch's. Whoever waits for it sleeps: spinning would take a core from cold neurons."""

    def __init__(self, stream: Any = None, *, spin: bool = False) -> None:
        self.event = torch.cuda.Event(blocking=not spin)
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()

    def passed(self) -> bool:
        return bool(self.event.query())


class CudaDevice(TorchArrays):
    """The current GPU of torch's; see `Device`. Raises `HotsetError` where there is none."""

    name = "GPU"

    def __init__(self) -> None:
        super().__init__("cuda")
        # Streams of its own: the default stream cannot be recorded. Which one a thread speaks to is the
        # thread's, so every call enters it (`guard`).
        self._stream = torch.cuda.Stream()
        self._copies = torch.cuda.Stream()
        with torch.cuda.stream(self._stream):
            if not self._awaits_packets():
                self.packets = _StagedPackets(self.packets, self.torch_device)

    def free_bytes(self) -> int:
        """What the system has left, and what torch keeps for later."""
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            memory = torch.zeros(max(nbytes, 1), dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise HotsetError(
                f"the system refuses {nbytes / 1e6:.0f} MB of pinned memory ({error})"
            ) from None
        array: NDArray[Any] = memory.numpy()[:nbytes].view(dtype).reshape(shape)
        return array

    def _awaits_packets(self) -> bool:
        """Whether a recorded kernel awaits a packet that comes late, at every replay, and answers it.

        There are devices whose recorded waits pass at once, or that do not see what comes later.
        """
        told = self.pinned((1,), np.uint32)
        packets = GpuPackets(self._gpu.gpu, as_tensor(told), _PROBE_LOOKS)
        control = self.pinned((2,), np.uint32)
        late, answer = (self.pinned((1, _PROBE_WIDTH), np.uint64) for _ in range(2))
        x = self.empty(late.shape)

        def step() -> None:
            packets.begin(as_tensor(control))
            packets.receive(as_tensor(late), x, add=False)
            packets.send(x, as_tensor(answer))

        try:
            control[:] = 1, 1
            if not _answers(step, late, answer, 1, behind=False):  # this compiles the kernels
                return False
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            for number in (2, 3):
                control[:] = number, 1
                if not _answers(graph.replay, late, answer, number, behind=True):
                    return False
        except RuntimeError:
            return False
        finally:
            torch.cuda.synchronize()
        return True

    def synchronize(self) -> None:
        for stream in (self._stream, self._copies):
            _TorchEvent(stream).wait()

    def mark(self, *, spin: bool = False) -> Event:
        return _TorchEvent(spin=spin)

    def follow(self, event: Event) -> None:
        if isinstance(event, _TorchEvent):
            torch.cuda.current_stream().wait_event(event.event)

    def aside(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = torch.cuda.stream(self._copies)
        return context

    @contextmanager
    def guard(self) -> Iterator[None]:
        try:
            with torch.cuda.stream(self._stream):
                yield
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError) and not isinstance(
                error.__cause__, torch.OutOfMemoryError
            ):
                raise
            raise DeviceMemoryError(
                f"the GPU is full, {self.free_bytes() >> 20} MiB are free: ask for a smaller budget (--vram)"
            ) from error

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph, made when the step has been done a few times."""
        return _RecordedStep(step)


def _answers(step: Callable[[], None], asked: Packet, answer: Packet, number: int, *, behind: bool) -> bool:
    """Whether a step answers with what it is asked, and not before; `behind`: asked only when it waits."""
    sent = np.random.default_rng(number).standard_normal(asked.shape).astype(np.float32)
    found = np.empty_like(sent)
    if not behind:
        _native.write_packet(sent, asked, number)
    step()
    early = False
    if behind:
        early = _native.take_packet(answer, number, found, _LATE_SECONDS)
        _native.write_packet(sent, asked, number)
    came = _native.take_packet(answer, number, found, _PROBE_SECONDS)
    return came and not early and bool((found == sent).all())


class _RecordedStep:
    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._calls = 0
        self._graph: Any = None

    def __call__(self) -> None:
        if self._graph is None and self._calls < _WARM_STEPS:
            self._calls += 1
            self._step()
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Only this thread's calls are watched: another may copy weights meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
            self._graph = graph
        self._graph.replay()
