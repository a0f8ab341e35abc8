"""A GPU of NVIDIA's: pinned memory, two streams, flags in the stream, and a step as a CUDA graph.

It has run on an H100 (`benchmarks/results/gpu-suite-h100.md`); what it shares with the stand-in devices is
tested there.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from hotset import _native
from hotset.backends.contract import F32, Array
from hotset.core.errors import HotsetError
from hotset.hybrid.device import DeviceMemoryError, Event, Flag
from hotset.hybrid.torch_arrays import TorchArrays

_LINE = 16
"""Numbers of four bytes to a cache line."""

_WAIT_EQUAL = 1
"""CU_STREAM_WAIT_VALUE_EQ."""

_LATE_SECONDS = 0.002
"""For so long the probe of stream operations lets a recorded wait wait."""

_PROBE_SECONDS = 1.0
"""After so long an operation of the probe that has not come is taken for lost."""

_WARM_STEPS = 2
"""Steps before one is recorded: the first compiles kernels, which a recording cannot."""


class _StreamFlags:
    """Flags that the current stream raises and awaits.

    By ``cuStreamWriteValue32`` and ``cuStreamWaitValue32`` (version 2, on by default with every driver that
    has it), where a graph that holds them does what it should; elsewhere by host functions, which any graph
    can hold, but which cost a wake-up each.
    """

    def __init__(self, probe: NDArray[np.uint32]) -> None:
        self._driver = _load_driver()
        self._raise, self._take = (ctypes.c_void_p(f) for f in _native.stream_functions())
        self._by_memory = hasattr(self._driver, "cuStreamWriteValue32_v2") and self._try(probe)

    def raise_flag(self, flag: Flag) -> None:
        if self._by_memory:
            self._write(flag, 1)
        else:
            self._host_function(self._raise, flag)

    def take_flag(self, flag: Flag) -> None:
        if self._by_memory:
            self._wait(flag)
            self._write(flag, 0)
        else:
            self._host_function(self._take, flag)

    def _try(self, probe: NDArray[np.uint32]) -> bool:
        """Whether a graph can write a flag, await one and write another, and does wait until it is raised.

        There are devices that take all of these calls, but pass a recorded wait at once.
        """
        begun, awaited, passed = probe
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._write(begun, 1)
                self._wait(awaited)
                self._write(passed, 1)
            graph.replay()
            waits = _comes(begun, _PROBE_SECONDS) and not _comes(passed, _LATE_SECONDS)
            _native.raise_flag(awaited)
            passes = _comes(passed, _PROBE_SECONDS)
            if passes:
                torch.cuda.synchronize()
        except (RuntimeError, HotsetError):
            return False
        return waits and passes

    def _write(self, flag: Flag, value: int) -> None:
        self._check(self._driver.cuStreamWriteValue32_v2(*_at(flag, value), ctypes.c_uint(0)))

    def _wait(self, flag: Flag) -> None:
        self._check(self._driver.cuStreamWaitValue32_v2(*_at(flag, 1), ctypes.c_uint(_WAIT_EQUAL)))

    def _host_function(self, function: ctypes.c_void_p, flag: Flag) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._check(self._driver.cuLaunchHostFunc(stream, function, ctypes.c_void_p(flag.ctypes.data)))

    def _check(self, result: int) -> None:
        if result:
            raise HotsetError(f"the GPU's driver refuses a stream operation (CUDA error {result}): update it")


def _comes(flag: Flag, seconds: float) -> bool:
    """Whether a flag is raised within so long."""
    return _native.take_flag(flag, seconds)


def _load_driver() -> ctypes.CDLL:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise HotsetError("the GPU's driver (libcuda) cannot be loaded: install NVIDIA's driver")


def _at(flag: Flag, value: int) -> tuple[Any, ...]:
    """Arguments: the current stream, the flag's address, which is the same on both sides, and a value."""
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    return stream, ctypes.c_uint64(flag.ctypes.data), ctypes.c_uint32(value)


class _TorchEvent:
    """An event of torch's. Whoever waits for it sleeps: spinning would take a core from cold neurons."""

    def __init__(self, stream: Any = None, *, spin: bool = False) -> None:
        self.event = torch.cuda.Event(blocking=not spin)
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()


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
            self._flags = _StreamFlags(self.pinned((3, _LINE), np.uint32))
        self._arrived: dict[tuple[int, ...], Array] = {}  # where sums lie before they are added

    def free_bytes(self) -> int:
        """See `Device`: what the system has left, and what torch keeps for later."""
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See `Device`."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            memory = torch.zeros(max(nbytes, 1), dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise HotsetError(
                f"the system refuses {nbytes / 1e6:.0f} MB of pinned memory ({error})"
            ) from None
        array: NDArray[Any] = memory.numpy()[:nbytes].view(dtype).reshape(shape)
        return array

    def raise_flag(self, flag: Flag) -> None:
        """See `Device`."""
        self._flags.raise_flag(flag)

    def take_flag(self, flag: Flag) -> None:
        """See `Device`."""
        self._flags.take_flag(flag)

    def receive(self, flag: Flag, x: F32, out: Array, *, add: bool) -> None:
        """See `Device`."""
        self.take_flag(flag)
        if not add:
            self.upload(x, out)
            return
        if x.shape not in self._arrived:
            self._arrived[x.shape] = self.empty(x.shape)
        self.upload(x, self._arrived[x.shape])
        self.add(self._arrived[x.shape], out)

    def synchronize(self) -> None:
        """See `Device`."""
        for stream in (self._stream, self._copies):
            _TorchEvent(stream).wait()

    def mark(self, *, spin: bool = False) -> Event:
        """See `Device`."""
        return _TorchEvent(spin=spin)

    def follow(self, event: Event) -> None:
        """See `Device`."""
        if isinstance(event, _TorchEvent):
            torch.cuda.current_stream().wait_event(event.event)

    def aside(self) -> AbstractContextManager[None]:
        """See `Device`."""
        context: AbstractContextManager[None] = torch.cuda.stream(self._copies)
        return context

    @contextmanager
    def guard(self) -> Iterator[None]:
        """See `Device`."""
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
        """See `Device`: a CUDA graph, made when the step has been done a few times."""
        return _RecordedStep(step)


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
