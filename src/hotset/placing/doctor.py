"""Measures the machine that it runs on, once: what `hotset plan` uses.

The processor's part is in `hotset.placing.doctor_cpu`, the GPU's in `hotset.placing.doctor_gpu`, and the
times of a model's parts are in `hotset.placing.timing`. The profile is kept in the user's cache directory
until the machine or Hotset's version changes, or it is measured again.
"""

import contextlib
import hashlib
import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from hotset.backends.cpu import CpuBackend
from hotset.core.errors import HotsetError
from hotset.core.limits import available_cores, physical_cores, physical_memory
from hotset.core.version import __version__
from hotset.formats.checkpoint import Checkpoint
from hotset.placing.doctor_cpu import CpuBench
from hotset.placing.machine import CpuRates, GpuRates, MachineProfile, load_machine

if TYPE_CHECKING:
    from hotset.hybrid.device import Device

Progress = Callable[[int, int], None]


def this_machine(
    *, threads: int | None = None, again: bool = False, progress: Progress | None = None
) -> MachineProfile:
    """This machine's profile, with so many threads, measured if there is none yet or it is wanted again.

    It is kept at `cache_path` where that can be written. Raises `HotsetError` for too many threads.
    """
    path = cache_path(threads)
    if not again and path.is_file():
        with contextlib.suppress(HotsetError):  # of another version, or damaged: measured again
            return load_machine(path)
    profile = measure_machine(progress, threads)
    with contextlib.suppress(HotsetError, OSError):  # it is measured again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.save(path)
    return profile


def machine_for(
    checkpoint: Checkpoint,
    device: "Device",
    host: CpuBackend,
    *,
    kv_type: str = "f16",
    progress: Progress | None = None,
) -> MachineProfile:
    """This machine's profile with the times of a model's parts; those that it lacks are measured and kept.

    All are of as many threads as `host` has.
    """
    from hotset.placing.timing import timed

    machine = this_machine(threads=host.threads, progress=progress)
    found = timed(checkpoint, device, host, machine, kv_type=kv_type, progress=progress)
    if found is not machine:
        with contextlib.suppress(HotsetError, OSError):  # they are measured again the next time
            found.save(cache_path(host.threads))
    return found


def no_gpu() -> str | None:
    """Why there is no GPU to use here, in a line; None where there is one."""
    if importlib.util.find_spec("torch") is None:
        return "the GPU's part needs torch: pip install 'hotset[gpu]'"
    import torch

    return None if torch.cuda.is_available() else "this machine has no GPU that torch can use"


def cache_path(threads: int | None = None) -> Path:
    """Where this machine's profile is kept; another processor, GPU, torch or Hotset gives another path.

    So does another number of threads; None: as many as there are cores to use.
    """
    facts = [
        str(threads or available_cores()),
        __version__,
        cpu_name(),
        str(os.cpu_count()),
        str(physical_memory()),
        str(importlib.util.find_spec("torch") is None),
    ]
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    facts += [_text(path) for path in gpus]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return _cache_directory() / f"machine-{key}.json"


def _cache_directory() -> Path:
    """Where the user's caches are, by https://specifications.freedesktop.org/basedir-spec/."""
    wanted = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (wanted if wanted.is_absolute() else Path.home() / ".cache") / "hotset"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "hotset"


def measure_machine(progress: Progress | None = None, threads: int | None = None) -> MachineProfile:
    """Measure everything, with so many threads. `progress(done, total)` counts measurements."""
    steps = 0
    has_gpu = no_gpu() is None
    total = 8 if has_gpu else 5

    def done() -> None:
        nonlocal steps
        steps += 1
        if progress:
            progress(steps, total)

    bench = CpuBench(done, threads)
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
        ram_bytes=float(physical_memory()),
        parts=bench.backend.parts,
    )
    done()
    measured = f"measured with {bench.backend.threads} threads, {bench.backend.level}"
    sources = {f"cpu.{field.name}": measured for field in fields(CpuRates)}
    sources["cpu.ram_bytes"] = "measured"
    sources["cpu.parts"] = f"measured: of {physical_cores()} cores"
    gpu: GpuRates | None = None
    if has_gpu:
        from hotset.placing.doctor_gpu import measure_gpu

        gpu, cpu, gpu_sources = measure_gpu(cpu, bench)
        sources |= gpu_sources
        for _ in range(total - steps):
            done()
    else:
        alone = "as quiet: there is no GPU to contend with"
        sources |= {f"cpu.{name}": alone for name in ("stream_contended", "gather_contended")}
        sources["cpu.gather_f16_contended"] = alone
    return MachineProfile(cpu_name(), cpu, gpu, sources)


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
