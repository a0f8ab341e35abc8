"""A model on a device and the CPU: what goes where, and what happens when it does not fit."""

import gc
import math
from dataclasses import dataclass

from hotset.backends.cpu import CpuBackend
from hotset.config import LayerPlacement, Placement
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.build import Progress, any_ffn_spec, build_hybrid
from hotset.hybrid.device import Device, DeviceMemoryError
from hotset.hybrid.slices import SLAB, ffn_bytes, granule
from hotset.hybrid.transformer import HybridTransformer

_SHRINK = 0.9
"""Of a budget that did not fit after all, or of what is free."""


@dataclass(frozen=True)
class Placed:
    """A model that is ready to run, and what the user should know about how it came to be."""

    transformer: HybridTransformer
    placement: Placement
    notes: tuple[str, ...]


def place(
    checkpoint: Checkpoint,
    device: Device,
    host: CpuBackend,
    budget: int,
    *,
    context: int,
    kv_type: str,
    kv_bytes: int,
    progress: Progress | None = None,
) -> Placed:
    """Build the model with at most `budget` bytes on the device, a KV cache of `context` tokens among them.

    `kv_bytes` is the size of that cache. Where the device has less memory than the budget says, because
    others have taken it, the budget is shrunk once. Raises `DeviceMemoryError`, with a budget that fits,
    where that does not help.
    """
    free = device.free_bytes()
    shrunk = None
    if budget > free:
        shrunk = f"{gib(free)} of the {gib(budget)} asked for are free on the {device.name}"
        budget = int(_SHRINK * free)
    while True:
        placement = fill(checkpoint, budget, kv_bytes)
        try:
            transformer = build_hybrid(checkpoint, placement, device, host, progress=progress)
            transformer.kv_cache(context, kv_type)  # given back at once: only to see that there is room
            note = () if shrunk is None else (f"{shrunk}: used {gib(budget)}",)
            return Placed(transformer, placement, note)
        except DeviceMemoryError:
            held = free - device.free_bytes()
        gc.collect()
        fits = int(_SHRINK * min(budget, held, device.free_bytes()))
        if shrunk:
            raise DeviceMemoryError(
                f"the {device.name} has no room for {gib(budget)} of weights and KV cache: use --vram "
                f"{fits >> 20}MiB, or end what else uses its memory"
            )
        shrunk = f"the {device.name} ran full with {gib(budget)} placed"
        budget = fits


def fill(checkpoint: Checkpoint, budget: int, kv_bytes: int) -> Placement:
    """What goes into a budget: attention and head first, then the hottest neurons of all layers alike."""
    config, tensors = checkpoint.config, checkpoint.tensors
    left = budget

    def fits(nbytes: int) -> bool:
        nonlocal left
        if nbytes > left:
            return False
        left -= nbytes
        return True

    attention = []
    for i in range(config.n_layers):
        own = [tensor.nbytes for name, tensor in tensors.items() if name.startswith(f"blk.{i}.attn_")]
        attention.append(fits(sum(own) + kv_bytes // config.n_layers))
    head = fits(tensors.get("output.weight", tensors["token_embd.weight"]).nbytes)

    size, hot = config.ffn_size, [0] * config.n_layers
    slabs, neuron_bytes = [], []
    for i in range(config.n_layers):
        spec = any_ffn_spec(checkpoint, i)
        slabs.append(math.lcm(SLAB, granule(spec)))
        neuron_bytes.append(math.ceil(ffn_bytes(spec) / size))
    growing = set(range(config.n_layers))
    while growing:
        i = min(growing, key=lambda i: hot[i])
        slab = min(slabs[i], size - hot[i])
        if slab and fits(slab * neuron_bytes[i]):
            hot[i] += slab
        else:
            growing.remove(i)
    return Placement(tuple(map(LayerPlacement, attention, hot)), head)


def gib(nbytes: int) -> str:
    """Bytes for people to read; one GiB is 2^30."""
    return f"{nbytes / 2**30:.2f} GiB"
