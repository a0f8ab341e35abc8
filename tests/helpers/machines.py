"""Machines to place models on."""

from dataclasses import replace
from pathlib import Path

from hotset.neurons.machine import MachineProfile, load_machine


def eager_machine() -> MachineProfile:
    """A GPU to which even a model of a few kilobytes goes: calls and hand-shakes cost next to nothing."""
    machine = load_machine(Path(__file__).parents[2] / "benchmarks" / "machines" / "rtx-4090-pc.json")
    assert machine.gpu
    gpu = replace(machine.gpu, part_us=0.0, handshake_us=0.0, stream=1e5, stream_contended=1e5)
    cpu = replace(machine.cpu, part_us=0.0)
    return replace(machine, cpu=cpu, gpu=gpu)
