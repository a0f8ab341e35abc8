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
    down = "ffn_down_t" if config.layers[0].ffn else "ffn_down"
    parts = (["ffn_gate"] if config.gated else []) + ["ffn_up", down]
    ffn = sum(
        checkpoint.tensors[f"blk.{i}.{part}.weight"].nbytes for i in range(config.n_layers) for part in parts
    )
    output = checkpoint.tensors.get("output.weight", checkpoint.tensors["token_embd.weight"]).nbytes
    left = share * (sum(attention) + ffn + output)
    head = left >= output
    left -= output if head else 0
    resident = []
    for nbytes in attention:
        resident.append(left >= nbytes)
        left -= nbytes if resident[-1] else 0
    slabs = int(max(0.0, left) / ffn * config.ffn_size + 1e-6) // slab
    hot = config.ffn_size if share == 1 else slabs * slab
    return Placement(tuple(LayerPlacement(on_device, hot) for on_device in resident), head)


def _mixer(layer: int) -> tuple[str, ...]:
    """How the names begin of what mixes positions in a layer."""
    return tuple(f"blk.{layer}.{part}" for part in ("attn_", "ssm_", "shortconv"))


def eager_machine() -> MachineProfile:
    """A GPU to which even a model of a few kilobytes goes: calls and hand-shakes cost nothing."""
    return machine(
        cpu_part_us=0.0, gpu_part_us=0.0, gpu_handshake_us=0.0, gpu_stream=1e5, gpu_stream_contended=1e5
    )
