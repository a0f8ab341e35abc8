"""`CudaDevice` on a machine without a GPU: what it tells CUDA, with a driver and streams that are made up.

Kernels run in Triton's interpreter, streams are the calling thread, packets are real. This finds wrong calls,
not what only hardware shows.
"""

import ctypes
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.parity import assert_close
from helpers.random_checkpoint import random_checkpoint
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import LayerPlacement, Placement
from hotset.core.errors import HotsetError
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import DeviceMemoryError
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer

if not (find_spec("torch") and find_spec("triton")):
    pytest.skip("needs torch and triton", allow_module_level=True)

STREAM = 77


class Driver:
    """What a GPU does: all at once, but a graph's packets when it is replayed, on another thread."""

    awaits = answers = counts = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorded: list[Callable[[], None]] | None = None

    def launch_host_function(self, stream: Any, function: Any, data: Any) -> int:
        assert stream.value == STREAM
        self.calls.append("host function")
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.value)(data.value)
        return 0

    def do(self, kind: str, work: Callable[[], None]) -> None:
        self.calls.append(kind)
        work()
        if self.recorded is not None:
            happens = {"begin": self.counts, "receive": self.awaits, "send": self.answers}
            self.recorded += [work] * happens[kind]


class HastyDriver(Driver):
    """A recorded kernel does not wait."""

    awaits = False


class LostDriver(Driver):
    """What a graph writes is not seen."""

    answers = False


class ForgetfulDriver(Driver):
    """A graph that is replayed has the number with which it was recorded."""

    counts = False


class Event:
    def __init__(self, blocking: bool) -> None:
        pass

    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Graph:
    replays = 0
    driver: Driver

    def __init__(self) -> None:
        self.recorded: list[Callable[[], None]] = []

    def replay(self) -> None:
        Graph.replays += 1
        threading.Thread(target=lambda: [work() for work in self.recorded], daemon=True).start()


@pytest.fixture(params=[Driver, HastyDriver])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    import torch

    from hotset.backends.gpu.packets import GpuPackets
    from hotset.hybrid import cuda, torch_arrays

    torch.set_num_threads(1)
    made_up = Graph.driver = request.param()
    stream = SimpleNamespace(cuda_stream=STREAM, wait_event=lambda event: None)
    zeros = torch.zeros

    def unpinned(*shape: Any, pin_memory: bool = False, **options: Any) -> Any:
        return zeros(*shape, **options)

    @contextmanager
    def graph(graph: Graph, **options: object) -> Any:
        made_up.recorded = graph.recorded
        yield  # what is recorded is done at once
        made_up.recorded = None

    replacements = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "mem_get_info": lambda: (5 << 30, 8 << 30),
        "memory_reserved": lambda: 3 << 20,
        "memory_allocated": lambda: 1 << 20,
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch, "zeros", unpinned)
    monkeypatch.setattr(cuda, "_host_function_launcher", lambda: made_up.launch_host_function)
    monkeypatch.setattr(cuda, "_PROBE_SECONDS", 0.5)
    for name in ("begin", "send", "receive"):
        method = getattr(GpuPackets, name)

        def told(*arguments: Any, name: str = name, method: Any = method, **options: Any) -> None:
            made_up.do(name, lambda: method(*arguments, **options))

        monkeypatch.setattr(GpuPackets, name, told)
    init = torch_arrays.TorchArrays.__init__
    monkeypatch.setattr(torch_arrays.TorchArrays, "__init__", lambda self, name: init(self, "cpu"))
    Graph.replays = 0
    return made_up


CHECKPOINT = random_checkpoint(hidden_size=32, ffn_size=96, windows=(None,))
SPLIT = Placement((LayerPlacement(False, 32),), False)
TOKENS = np.arange(12, dtype=np.int32)


def logits(model: Transformer, prompt: int, length: int) -> NDArray[np.float32]:
    kv = model.sequence(32, "f32")
    parts = [model.forward(Batch.of(kv, TOKENS[:prompt], lossless=True, logits=None))]
    parts += [model.forward(Batch.of(kv, TOKENS[i : i + 1])) for i in range(prompt, length)]
    return np.concatenate(parts)


def test_a_model_through_the_calls(driver: Driver) -> None:
    """Two steps before one is recorded; recorded and replayed ones after that."""
    from hotset.hybrid.cuda import CudaDevice

    model = build_hybrid(CHECKPOINT, SPLIT, CudaDevice(), CpuBackend(threads=1), stream_from=9)
    replays = Graph.replays
    expected = logits(build_transformer(CHECKPOINT, CpuBackend(threads=1)), 9, 11)
    driver.calls.clear()
    assert_close(logits(model, 9, 11), expected, 1e-3)
    assert Graph.replays == replays
    # The chain of the host's attention, whose end the cold neurons read where it is; for each of two tokens.
    answer = ["host function", "receive"] if type(driver) is HastyDriver else ["receive"]
    assert driver.calls == ["begin", *answer, *answer] * 2


@pytest.mark.parametrize("driver", [Driver, HastyDriver, LostDriver, ForgetfulDriver], indirect=True)
def test_kernels_that_await_are_tried_by_lateness(driver: Driver) -> None:
    """They are used where a recorded one waits for a packet that comes later, and sees it, every time."""
    from hotset.hybrid.cuda import CudaDevice

    device = CudaDevice()
    control, packet = device.pinned((2,), np.uint32), device.pinned((1, 5), np.uint64)
    control[:] = 7, 1
    x = np.arange(5, dtype=np.float32)[None]
    _native.write_packet(x, packet, 7)
    driver.calls.clear()
    out = device.empty((1, 5))
    device.begin(control)
    device.receive(packet, out, add=False)
    assert driver.calls == ["begin", *["host function"] * (type(driver) is not Driver), "receive"]
    np.testing.assert_array_equal(out.numpy(), x)


def test_a_kernel_that_waits_in_vain_gives_up(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so do those after it in the same step; those of the next do not."""
    from hotset.hybrid import torch_arrays
    from hotset.testing.interpreted import InterpretedDevice

    monkeypatch.setattr(torch_arrays, "MOST_LOOKS", 3)
    device = InterpretedDevice()
    packets, out = device.pinned((2, 1, 5), np.uint64), device.empty((1, 5))
    for number in (3, 4):
        x = np.full((1, 5), number, np.float32)
        _native.write_packet(x, packets[1], number)
        device.begin(np.array([number, 1], np.uint32))
        if number == 3:
            device.receive(packets[0], out, add=False)
        device.receive(packets[1], out, add=False)
        assert device.gave_up(number) == (number == 3)
        np.testing.assert_array_equal(out.numpy(), x)


def test_a_step_is_recorded_once(driver: Driver) -> None:
    from hotset.hybrid.cuda import CudaDevice

    told: list[int] = []
    step = CudaDevice().record(lambda: told.append(1))
    replays = Graph.replays
    for _ in range(7):
        step()
    assert len(told) == 3  # twice as it is, and once to be recorded
    assert Graph.replays - replays == 5


def test_want_of_memory(driver: Driver) -> None:
    import torch

    from hotset.hybrid.cuda import CudaDevice

    device = CudaDevice()
    assert device.free_bytes() == (5 << 30) + (2 << 20)
    with pytest.raises(DeviceMemoryError, match="the GPU is full, 5122 MiB are free"), device.guard():
        raise torch.OutOfMemoryError
    with pytest.raises(DeviceMemoryError), device.guard():
        raise HotsetError("KV cache") from torch.OutOfMemoryError()
    with pytest.raises(ValueError, match="another"), device.guard():
        raise ValueError("another")


def test_pinned_arrays(driver: Driver) -> None:
    from hotset.hybrid.cuda import CudaDevice

    array = CudaDevice().pinned((3, 5), np.float32)
    assert (array.shape, array.dtype, array.sum()) == ((3, 5), np.float32, 0)
    assert array.flags.c_contiguous
    assert array.flags.writeable
