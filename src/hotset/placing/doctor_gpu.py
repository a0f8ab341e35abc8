"""Measures the GPU, the bus to it, and what each side keeps of its speed while the other works; by torch."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hotset.backends.contract import FFN, AttentionSpec, FFNSpec, Linear, Norm, StateShape
from hotset.core.batch import Batch
from hotset.core.config import Activation, NormKind
from hotset.formats.tensor import TensorType
from hotset.placing.machine import CpuRates, GpuRates
from hotset.placing.random_weights import random_weights

if TYPE_CHECKING:
    from hotset.placing.doctor_cpu import CpuBench

_COPY_BYTES = 256 << 20
_REPEATS = 10
_MATRIX = 4096
_HIDDEN, _FFN, _LAYERS = 4096, 11008, 4
"""Of FFNs of a 7B model's size: together more than the GPU's cache holds."""
_TINY = 64


def measure_gpu(cpu: CpuRates, bench: "CpuBench") -> tuple[GpuRates, CpuRates, dict[str, str]]:
    """The GPU's rates, the processor's with its contended ones, and the sources of what was measured."""
    import torch

    name = torch.cuda.get_device_name(0)
    kernel_gb_per_second, part_us = kernel_rates()
    buffers = _Buffers(torch)
    stream, to_device, to_host = buffers.copy_rates()
    with _busy(bench.backend.memory_bandwidth):
        stream_busy, to_device_busy, to_host_busy = buffers.copy_rates()
    with _busy(buffers.work):
        busy = bench.rates()
    gpu = GpuRates(
        stream=stream,
        stream_contended=min(stream, stream_busy),
        kernel_share=min(1.0, kernel_gb_per_second / stream),
        part_us=part_us,
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
    sources["gpu.handshake_us"] = f"measured on {name}: the executor's, with vectors of {_MATRIX} numbers"
    return gpu, contended, sources


def executor_handshake_us() -> float:
    """Microseconds of one task of the executor for the processor, and back."""
    from hotset.hybrid.cuda import CudaDevice
    from hotset.hybrid.handshake import handshake_us

    return handshake_us(CudaDevice(), _MATRIX)


def kernel_rates() -> tuple[float, float]:
    """GB/s of weights that FFNs in Q4_0 read for one token, and the microseconds of a part of few bytes.

    The latter is the mean of an attention's and an FFN's; all are recorded, as decoding steps are.
    """
    import torch

    from hotset.backends.gpu import GpuBackend

    backend, rng = GpuBackend(), np.random.default_rng(0)

    def linear(kind: TensorType, rows: int, cols: int) -> Linear:
        return Linear(random_weights(kind, rows, cols, rng))

    def ffn(kind: TensorType, hidden: int, size: int) -> FFN:
        up, down = linear(kind, size, hidden), linear(kind, hidden, size)
        norm = Norm(NormKind.RMS, 1e-5, np.ones(hidden, np.float32))
        return backend.ffn(FFNSpec(norm, up, up, down, Activation.SILU))

    def microseconds(calls: list[Callable[[], object]]) -> float:
        """Of one of the calls, replayed one after the other."""
        for call in calls:
            call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_REPEATS):
                for call in calls:
                    call()
        return _seconds(torch, graph.replay, 3) / (_REPEATS * len(calls)) * 1e6

    big, tiny = (
        [ffn(TensorType.Q4_0, _HIDDEN, _FFN) for _ in range(_LAYERS)],
        ffn(TensorType.F16, _TINY, _TINY),
    )
    matrix = linear(TensorType.F16, _TINY, _TINY)
    norm = Norm(NormKind.RMS, 1e-5, np.ones(_TINY, np.float32))
    attention = backend.attention(
        AttentionSpec(norm, matrix, matrix, matrix, matrix, 1, 1, _TINY, _TINY**-0.5, None)
    )
    sequence = backend.sequence(StateShape(1, 1, _TINY), 1024, "f16")
    view = backend.view(Batch.of(sequence, np.zeros(1, np.int32)))
    x, few = (torch.zeros(1, n, dtype=torch.float32, device="cuda") for n in (_HIDDEN, _TINY))
    ffn_us = microseconds([lambda: tiny.forward(few, few, None)])
    attention_us = microseconds([lambda: attention.forward(few, few, view)])
    big_us = microseconds([lambda layer=layer: layer.forward(x, x, None) for layer in big])  # type: ignore[misc]
    nbytes = 3 * _HIDDEN * _FFN * TensorType.Q4_0.block_bytes / TensorType.Q4_0.block_size
    return nbytes / (big_us - ffn_us) / 1e3, (ffn_us + attention_us) / 2


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
