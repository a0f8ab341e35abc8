"""`CudaDevice` on a machine without a GPU: what it tells CUDA, with a driver and streams that are made up.

Kernels run in Triton's interpreter, streams are the calling thread, flags are real. This finds wrong calls,
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
    """libcuda, as far as it is used: all happens at once, what the first graph holds when it is replayed."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.later: list[Callable[[], None]] | None = []

    def cuStreamWriteValue32_v2(self, stream: Any, address: Any, value: Any, flags: Any) -> int:  # noqa: N802
        assert (stream.value, flags.value) == (STREAM, 0)
        self.calls.append(f"write {value.value}")
        self.do(lambda: self.write(_flag(address.value), value.value))
        return 0

    def cuStreamWaitValue32_v2(self, stream: Any, address: Any, value: Any, flags: Any) -> int:  # noqa: N802
        assert (stream.value, value.value, flags.value) == (STREAM, 1, 1)
        self.calls.append("wait")
        self.do(lambda: self.wait(_flag(address.value)))
        return 0

    def cuLaunchHostFunc(self, stream: Any, function: Any, data: Any) -> int:  # noqa: N802
        assert stream.value == STREAM
        self.calls.append("host function")
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.value)(data)
        return 0

    def do(self, work: Callable[[], None]) -> None:
        if self.later is None:
            work()
        else:
            self.later.append(work)

    def replay(self) -> None:
        """What the first graph holds, on another thread."""
        if (later := self.later) is not None:
            self.later = None
            threading.Thread(target=lambda: [work() for work in later], daemon=True).start()

    def write(self, flag: NDArray[np.uint32], value: int) -> None:
        flag[0] = value

    def wait(self, flag: NDArray[np.uint32]) -> None:
        assert _native.take_flag(flag, 20.0)


class OldDriver(Driver):
    """Refuses stream memory operations: CUDA_ERROR_NOT_SUPPORTED."""

    def cuStreamWriteValue32_v2(self, stream: Any, address: Any, value: Any, flags: Any) -> int:  # noqa: N802
        self.later = None
        return 801


class HastyDriver(Driver):
    """A recorded wait does not wait."""

    def wait(self, flag: NDArray[np.uint32]) -> None:
        pass


class LostDriver(Driver):
    """What a graph writes is not seen."""

    def write(self, flag: NDArray[np.uint32], value: int) -> None:
        pass


def _flag(address: int) -> NDArray[np.uint32]:
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint32)), (1,))


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

    def replay(self) -> None:
        Graph.replays += 1
        Graph.driver.replay()


@pytest.fixture(params=[Driver, OldDriver])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    import torch

    from hotset.hybrid import cuda, torch_arrays

    torch.set_num_threads(1)
    made_up = Graph.driver = request.param()
    stream = SimpleNamespace(cuda_stream=STREAM, wait_event=lambda event: None)
    zeros = torch.zeros

    def unpinned(*shape: Any, pin_memory: bool = False, **options: Any) -> Any:
        return zeros(*shape, **options)

    @contextmanager
    def graph(*arguments: object, **options: object) -> Any:
        yield  # what is recorded is done at once

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
    monkeypatch.setattr(cuda, "_load_driver", lambda: made_up)
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
    # The chain of the host's attention, and the cold neurons; for each of two tokens.
    if type(driver) is Driver:
        assert driver.calls == ["write 1", "wait", "write 0"] * 4
    else:
        assert driver.calls == ["host function"] * 8


@pytest.mark.parametrize("driver", [Driver, HastyDriver, LostDriver, OldDriver], indirect=True)
def test_stream_operations_are_tried_by_lateness(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are used where a recorded wait waits for a flag that is raised later, and ends then."""
    from hotset.hybrid import cuda

    monkeypatch.setattr(cuda, "_PROBE_SECONDS", 0.2)
    device = cuda.CudaDevice()
    driver.calls.clear()
    driver.later = None
    flag = device.pinned((16,), np.uint32)
    device.raise_flag(flag)
    assert driver.calls == (["write 1"] if type(driver) is Driver else ["host function"])


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
