"""Machine profiles that nothing was measured for."""

from dataclasses import fields
from typing import Any

from hotset.placing.machine import CpuRates, GpuRates, MachineProfile

CPU = {
    "stream": 60.0,
    "stream_contended": 50.0,
    "gather": 40.0,
    "gather_contended": 35.0,
    "gather_f16": 45.0,
    "gather_f16_contended": 38.0,
    "kernel_share": 0.9,
    "part_us": 2.0,
    "tflops": 0.5,
    "ram_bytes": 64e9,
}
GPU = {
    "stream": 900.0,
    "stream_contended": 880.0,
    "kernel_share": 0.75,
    "part_us": 2.0,
    "tflops": 80.0,
    "to_device": 25.0,
    "to_device_contended": 20.0,
    "to_host": 25.0,
    "to_host_contended": 20.0,
    "handshake_us": 5.0,
    "vram_bytes": 24e9,
}


def machine(gpu: bool = True, **changes: Any) -> MachineProfile:
    """A machine; `changes` such as ``gpu_stream=500.0`` replace single numbers."""
    cpu = CPU | {k.removeprefix("cpu_"): v for k, v in changes.items() if k.startswith("cpu_")}
    of_gpu = GPU | {k.removeprefix("gpu_"): v for k, v in changes.items() if k.startswith("gpu_")}
    sources = {f"cpu.{f.name}": "assumed" for f in fields(CpuRates)}
    if gpu:
        sources |= {f"gpu.{f.name}": "assumed" for f in fields(GpuRates)}
    return MachineProfile("made up", CpuRates(**cpu), GpuRates(**of_gpu) if gpu else None, sources)
