"""Placements for tests: without a planner, and with a machine that places even the smallest model."""

from helpers.machines import machine
from hotset.core.config import LayerPlacement, Placement
from hotset.formats.checkpoint import Checkpoint
from hotset.placing.machine import MachineProfile


def by_share(checkpoint: Checkpoint, share: float, slab: int = 1) -> Placement:
    """About so much of the weights on the device: the head and attention first, then neurons evenly."""
    config = checkpoint.config
    attention = [
        sum(t.nbytes for name, t in checkpoint.tensors.items() if name.startswith(_mixer(i)))
        for i in range(config.n_layers)
    ]
    parts = ("ffn_gate", "ffn_up", "ffn_down_t", "ffn_down")
    names = [f"blk.{i}.{part}.weight" for i in range(config.n_layers) for part in parts]
    ffn = sum(checkpoint.tensors[name].nbytes for name in names if name in checkpoint.tensors)
    output = checkpoint.tensors.get("output.weight", checkpoint.tensors["token_embd.weight"]).nbytes
    left = share * (sum(attention) + ffn + output)
    head = left >= output
    left -= output if head else 0
    resident = []
    for nbytes in attention:
        resident.append(left >= nbytes)
        left -= nbytes if resident[-1] else 0

    def hot(neurons: int) -> int:
        return neurons if share == 1 else int(max(0.0, left) / ffn * neurons + 1e-6) // slab * slab

    layers = enumerate(resident)
    return Placement(tuple(LayerPlacement(on_device, hot(config.units(i))) for i, on_device in layers), head)


def _mixer(layer: int) -> tuple[str, ...]:
    """How the names begin of what mixes positions in a layer."""
    return tuple(f"blk.{layer}.{part}" for part in ("attn_", "ssm_", "shortconv"))


def eager_machine() -> MachineProfile:
    """A GPU to which even a model of a few kilobytes goes: calls and hand-shakes cost nothing."""
    return machine(
        cpu_part_us=0.0, gpu_part_us=0.0, gpu_handshake_us=0.0, gpu_stream=1e5, gpu_stream_contended=1e5
    )
