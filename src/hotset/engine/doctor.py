"""Measures the machine that it runs on, once: what `hotset plan` reckons with.

The processor's part measures Hotset's own kernels on layers of a 7B model's size with random weights, more
than caches hold. The GPU's part is in `hotset.engine.doctor_gpu`. The profile is kept in the user's cache
directory until the machine changes or is measured again.
"""

import contextlib
import hashlib
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import numpy as np

from hotset.backends.base import F32, FFN, FFNSpec, Linear, NeuronFFNSpec, Norm
from hotset.backends.cpu import CpuBackend, CpuNeuronFFN, cache_bytes
from hotset.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.engine.random_weights import random_weights
from hotset.errors import HotsetError
from hotset.formats.tensor import TensorType, tensor_from_array
from hotset.neurons.machine import CpuRates, GpuRates, MachineProfile, load_machine

Progress = Callable[[int, int], None]

_HIDDEN, _FFN, _WIDTH = 4096, 11008, 32
"""A 7B model's hidden size and neurons; and the width of the predictor that chooses neurons at random."""
_DENSITY = 0.1
"""Share of neurons chosen while gathering is measured."""
_LAYERS, _MOST_LAYERS = 3, 24
"""At least and at most so many layers take turns, so that caches do not hold them."""
_CALLS = 24
_PROMPT = 64
"""Tokens at a time while multiplications are counted."""


def this_machine(*, again: bool = False, progress: Progress | None = None) -> MachineProfile:
    """This machine's profile, measured if there is none yet or it is wanted anew."""
    path = cache_path()
    if not again and path.is_file():
        with contextlib.suppress(HotsetError):  # of another version, or damaged: measured anew
            return load_machine(path)
    profile = measure_machine(progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.save(path)
    return profile


def gpu_machine(progress: Progress | None = None) -> MachineProfile:
    """This machine's profile; `HotsetError` before anything is measured if it has no GPU to plan for."""
    reason = no_gpu()
    if reason:
        raise HotsetError(f"{reason}; to plan for another machine, give its profile as --machine FILE")
    return this_machine(progress=progress)


def no_gpu() -> str | None:
    """Why there is no GPU to use here, in a line; None where there is one."""
    if importlib.util.find_spec("torch") is None:
        return "the GPU's part needs torch: pip install 'hotset[gpu]'"
    import torch

    return None if torch.cuda.is_available() else "this machine has no GPU that torch can use"


def cache_path() -> Path:
    """Where this machine's profile is kept; another processor, GPU or torch gives another path."""
    facts = [
        cpu_name(),
        str(os.cpu_count()),
        str(_ram_bytes()),
        str(importlib.util.find_spec("torch") is None),
    ]
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    facts += [_text(path) for path in gpus]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "hotset" / f"machine-{key}.json"


def measure_machine(progress: Progress | None = None) -> MachineProfile:
    """Measure everything. `progress(done, total)` counts measurements."""
    steps = 0
    has_gpu = no_gpu() is None
    total = 8 if has_gpu else 5

    def done() -> None:
        nonlocal steps
        steps += 1
        if progress:
            progress(steps, total)

    bench = CpuBench(done)
    quiet = bench.rates()
    done()
    cpu = CpuRates(
        stream=quiet.stream,
        stream_contended=quiet.stream,
        gather=quiet.gather,
        gather_contended=quiet.gather,
        gather_f16=quiet.gather_f16,
        gather_f16_contended=quiet.gather_f16,
        kernel_share=min(1.0, bench.dense() / quiet.stream),
        part_us=bench.part_us(),
        tflops=bench.tflops(),
        ram_bytes=_ram_bytes(),
    )
    done()
    threads = f"measured with {bench.backend.threads} threads, {bench.backend.level}"
    sources = {f"cpu.{field.name}": threads for field in fields(CpuRates)}
    sources["cpu.ram_bytes"] = "measured"
    gpu: GpuRates | None = None
    if has_gpu:
        from hotset.engine.doctor_gpu import measure_gpu

        gpu, cpu, gpu_sources = measure_gpu(cpu, bench)
        sources |= gpu_sources
        for _ in range(total - steps):
            done()
    else:
        alone = "as quiet: there is no GPU to contend with"
        sources |= {f"cpu.{name}": alone for name in ("stream_contended", "gather_contended")}
        sources["cpu.gather_f16_contended"] = alone
    return MachineProfile(cpu_name(), cpu, gpu, sources)


@dataclass(frozen=True)
class Gathered:
    """What the processor reads, GB/s."""

    stream: float
    gather: float
    gather_f16: float


class CpuBench:
    """Layers with random weights, and what is measured with them."""

    def __init__(self, done: Callable[[], None] = lambda: None) -> None:
        self.backend = CpuBackend()
        rng = np.random.default_rng(0)
        self._inputs = [rng.standard_normal((1, _HIDDEN), dtype=np.float32) for _ in range(13)]
        self._norm = Norm(NormKind.RMS, 1e-5, np.ones(_HIDDEN, np.float32))
        self._fc = (
            tensor_from_array("fc1", rng.standard_normal((_WIDTH, _HIDDEN)) / _HIDDEN**0.5),
            tensor_from_array("fc2", rng.standard_normal((_FFN, _WIDTH)) / _WIDTH**0.5),
        )
        scores = np.concatenate(self._inputs) @ self._fc[0].to_float32().T @ self._fc[1].to_float32().T
        self._cutoff = float(np.quantile(scores, 1 - _DENSITY))
        self._chosen = {}
        layer_bytes = 3 * _HIDDEN * _FFN * TensorType.Q4_0.block_bytes // TensorType.Q4_0.block_size
        n_layers = min(max(_LAYERS, 3 * cache_bytes() // layer_bytes), _MOST_LAYERS)
        for kind in (TensorType.Q4_0, TensorType.F16):
            rows = Linear(random_weights(kind, _FFN, _HIDDEN, rng))
            self._chosen[kind] = [self._sparse(rows) for _ in range(n_layers)]
            done()
        gate, down = (
            random_weights(TensorType.Q4_0, _FFN, _HIDDEN, rng),
            random_weights(TensorType.Q4_0, _HIDDEN, _FFN, rng),
        )
        spec = FFNSpec(self._norm, Linear(gate), Linear(gate), Linear(down), Activation.SILU)
        self._dense: list[FFN] = [self.backend.ffn(spec) for _ in range(n_layers)]
        self._dense_bytes = 2 * gate.nbytes + down.nbytes
        done()

    def rates(self) -> Gathered:
        """Streaming and gathering."""
        stream = self.backend.memory_bandwidth()
        return Gathered(stream, self._gather(TensorType.Q4_0, stream), self._gather(TensorType.F16, stream))

    def dense(self) -> float:
        """GB/s of weights that a whole FFN in Q4_0 reads for one token."""
        return self._dense_bytes / _seconds(self._dense, self._inputs) / 1e9

    def part_us(self) -> float:
        """Microseconds of an FFN of next to no weights."""
        rng = np.random.default_rng(1)
        matrix = Linear(random_weights(TensorType.F16, 64, 64, rng))
        norm = Norm(NormKind.RMS, 1e-5, np.ones(64, np.float32))
        tiny = self.backend.ffn(FFNSpec(norm, matrix, matrix, matrix, Activation.SILU))
        return _seconds([tiny], [x[:, :64].copy() for x in self._inputs]) * 1e6

    def tflops(self) -> float:
        """Of a whole FFN in Q4_0 over some tokens of a prompt."""
        prompt = np.repeat(np.concatenate(self._inputs), _PROMPT // len(self._inputs) + 1, axis=0)[:_PROMPT]
        seconds = _seconds(self._dense[:1], [prompt], calls=2)
        return 2 * 3 * _HIDDEN * _FFN * _PROMPT / seconds / 1e12

    def _sparse(self, rows: Linear) -> CpuNeuronFFN:
        plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK, self._cutoff)
        predictor = (Linear(self._fc[0]), Linear(self._fc[1]))
        # SiLU is never zero: all rows of every chosen neuron are read.
        spec = NeuronFFNSpec(self._norm, rows, rows, rows, Activation.SILU, plan, predictor)
        return self.backend.neuron_ffn(spec)

    def _gather(self, kind: TensorType, stream: float) -> float:
        layers = self._chosen[kind]
        before = [layer.counts() for layer in layers]
        seconds = _seconds(list(layers), self._inputs)
        after = [layer.counts() for layer in layers]
        read = sum(b.read - a.read for a, b in zip(before, after, strict=True))
        tokens = sum(b.tokens - a.tokens for a, b in zip(before, after, strict=True))
        nbytes = read / tokens * 3 * _HIDDEN // kind.block_size * kind.block_bytes
        predictor = sum(tensor.nbytes for tensor in self._fc)
        return nbytes / max(seconds - predictor / stream / 1e9, seconds / 2) / 1e9


def _seconds(layers: list[FFN], inputs: list[F32], calls: int = _CALLS) -> float:
    """Median time of a call; layers take turns, and the first round is not counted."""
    times = []
    for i in range(-len(layers), calls):
        x = inputs[i % len(inputs)]
        out = np.zeros_like(x)
        start = time.perf_counter()
        layers[i % len(layers)].forward(x, out)
        if i >= 0:
            times.append(time.perf_counter() - start)
    return median(times)


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _ram_bytes() -> float:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        raise HotsetError("this system does not say how much memory it has")
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
