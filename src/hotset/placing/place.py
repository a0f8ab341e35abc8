"""A model on a device and the CPU: planned, built, and planned again where it does not fit."""

import gc
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.build import Progress, build_hybrid
from hotset.hybrid.device import Device, DeviceMemoryError
from hotset.hybrid.swaps import BUS_SHARE
from hotset.hybrid.transformer import HybridTransformer
from hotset.placing.costs import gpu_of
from hotset.placing.machine import MachineProfile
from hotset.placing.planner import Plan, Planner
from hotset.placing.timing import sides
from hotset.state.kv_types import KV_TYPES

_SHRINK = 0.9
"""Of what was there: memory is handed out in blocks, and others want some."""

_PROMPT = 512
"""Tokens before the one for which a placement is chosen, at most the context; as in `hotset plan`."""


@dataclass(frozen=True)
class Placed:
    """A model that is ready to run, its plan, and what the user should know about how it came to be."""

    transformer: HybridTransformer
    plan: Plan
    notes: tuple[str, ...]


def place(
    checkpoint: Checkpoint,
    device: Device,
    host: CpuBackend,
    budget: int,
    *,
    machine: MachineProfile,
    context: int,
    kv_type: str,
    sequences: int = 1,
    frequency: NDArray[np.floating] | None = None,
    progress: Progress | None = None,
) -> Placed:
    """Build the model with at most `budget` bytes on the device, a KV cache of `context` tokens among them.

    These are of all `sequences` together. `frequency` is as in `hotset.placing.planner.Planner`. Where the
    device has less memory than the budget says, because others have taken it, the budget is shrunk once.
    Raises `DeviceMemoryError`, with a budget that fits, where that does not help.
    """
    planner = Planner(
        checkpoint,
        machine,
        context=context,
        prompt=min(_PROMPT, context),
        frequency=frequency,
        kv_number_bytes=KV_TYPES[kv_type],
        sequences=sequences,
        sides=sides(host, device),
    )
    rate = BUS_SHARE * gpu_of(machine).to_device * 1e9
    build = partial(build_hybrid, checkpoint, device=device, host=host, swap_rate=rate, progress=progress)
    free = device.free_bytes()
    shrunk = None
    if budget > free:
        shrunk = f"{gib(free)} of the {gib(budget)} asked for are free on the {device.name}"
        budget = int(_SHRINK * free)
    while True:
        plan = planner.plan(budget)
        try:
            transformer = build(placement=plan.placement, stream_from=plan.stream_from)
            transformer.sequence(context, kv_type)  # given back at once: only to see that there is room
            return Placed(transformer, plan, (f"{shrunk}: used {gib(budget)}",) if shrunk else ())
        except DeviceMemoryError:
            held = free - device.free_bytes() + plan.working_bytes
        gc.collect()
        fits = int(_SHRINK * min(budget, held, device.free_bytes()))
        if shrunk:
            raise _no_room(device, budget, fits)
        shrunk = f"the {device.name} ran full with {gib(budget)} planned"
        budget = fits


def _no_room(device: Device, budget: int, fits: int) -> DeviceMemoryError:
    return DeviceMemoryError(
        f"the {device.name} has no room for {gib(budget)} of weights and KV cache: use --vram "
        f"{fits >> 20}MiB, or end what else uses its memory"
    )


def gib(nbytes: int) -> str:
    """Bytes for people to read; one GiB is 2^30."""
    return f"{nbytes / 2**30:.2f} GiB"
