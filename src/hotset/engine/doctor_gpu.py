"""Measures the GPU, the bus to it, and what each side keeps of its speed while the other works. Needs torch.

Untested on hardware: written where there was no GPU, and run there on a stand-in for torch only.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hotset.neurons.machine import CpuRates, GpuRates

if TYPE_CHECKING:
    from hotset.engine.doctor import CpuBench

_COPY_BYTES = 256 << 20
_REPEATS = 10
_MATRIX = 4096
_KERNEL_SHARE = 0.75
_PART_US = 20.0


def measure_gpu(cpu: CpuRates, bench: "CpuBench") -> tuple[GpuRates, CpuRates, dict[str, str]]:
    """The GPU's rates, the processor's with its contended ones, and the sources of what was measured."""
    import torch

    name = torch.cuda.get_device_name(0)
    buffers = _Buffers(torch)
    stream, to_device, to_host = buffers.copy_rates()
    with _busy(bench.backend.memory_bandwidth):
        stream_busy, to_device_busy, to_host_busy = buffers.copy_rates()
    with _busy(buffers.work):
        busy = bench.rates()
    gpu = GpuRates(
        stream=stream,
        stream_contended=min(stream, stream_busy),
        kernel_share=_KERNEL_SHARE,
        part_us=_PART_US,
        tflops=_tflops(torch),
        to_device=to_device,
        to_device_contended=min(to_device, to_device_busy),
        to_host=to_host,
        to_host_contended=min(to_host, to_host_busy),
        handshake_us=executor_handshake_us(),
        vram_bytes=float(torch.cuda.get_device_properties(0).total_memory),
    )
    contended = replace(
        cpu,
        stream_contended=min(cpu.stream, busy.stream),
        gather_contended=min(cpu.gather, busy.gather),
        gather_f16_contended=min(cpu.gather_f16, busy.gather_f16),
    )
    sources = {f"gpu.{field}": f"measured on {name}" for field in GpuRates.__dataclass_fields__}
    sources["gpu.kernel_share"] = "assumed: what Hotset's GPU kernels aim at"
    sources["gpu.part_us"] = "assumed: ten kernels of 2 us in a CUDA graph"
    sources["gpu.handshake_us"] = f"measured on {name}: the executor's, with vectors of {_MATRIX} numbers"
    return gpu, contended, sources


def executor_handshake_us() -> float:
    """Microseconds of one task of the executor for the processor, and back."""
    from hotset.hybrid.cuda import CudaDevice
    from hotset.hybrid.handshake import handshake_us

    return handshake_us(CudaDevice(), _MATRIX)


class _Buffers:
    """Memory on either side, to copy between."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._a, self._b = (torch.zeros(_COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
        self._host = torch.zeros(_COPY_BYTES, dtype=torch.uint8).pin_memory()

    def copy_rates(self) -> tuple[float, float, float]:
        """GB/s within the GPU (read and written), to it, and from it."""

        def rate(target: Any, source: Any, nbytes: int) -> float:
            copy = _seconds(self._torch, lambda: target.copy_(source, non_blocking=True), _REPEATS)
            return nbytes / copy / 1e9

        return (
            rate(self._a, self._b, 2 * _COPY_BYTES),
            rate(self._a, self._host, _COPY_BYTES),
            rate(self._host, self._a, _COPY_BYTES),
        )

    def work(self) -> None:
        """Something for the GPU and the bus to do, for some milliseconds."""
        for _ in range(4):
            self._a.copy_(self._b, non_blocking=True)
            self._a.copy_(self._host, non_blocking=True)
        self._torch.cuda.synchronize()


def _tflops(torch: Any) -> float:
    a, b = (torch.zeros(_MATRIX, _MATRIX, dtype=torch.float16, device="cuda") for _ in range(2))
    return 2 * _MATRIX**3 / _seconds(torch, lambda: a @ b, _REPEATS) / 1e12


def _seconds(torch: Any, call: Callable[[], object], repeats: int) -> float:
    """Time of a call, the mean over repeats, after one that is not counted."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


@contextmanager
def _busy(work: Callable[[], object]) -> Iterator[None]:
    """Keep one side busy with calls, in a thread, while the other is measured."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
