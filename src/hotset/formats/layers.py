"""A model's layers, from what either kind of file says of windows and RoPE."""

from collections.abc import Sequence

from hotset.architectures.row import Architecture
from hotset.core.config import LayerConfig, RopeConfig
from hotset.formats.by_layer import with_sizes
from hotset.formats.recurrent import with_kinds
from hotset.formats.tensor_table import Sizes


def layer_configs(
    architecture: Architecture,
    sizes: Sizes,
    ropes: tuple[RopeConfig, RopeConfig] | tuple[None, None],
    window: int,
    sliding: Sequence[bool],
    rotated: Sequence[bool],
) -> tuple[LayerConfig, ...]:
    """Build each layer's configuration.

    `ropes` are those of layers that attend to all and of windowed ones. `window` is in positions; 0: all
    layers attend to all. For each layer, `sliding` says whether it has a window, if any has, and `rotated`
    whether it has RoPE.
    """
    full, local = ropes
    layers = []
    for i, (slides, rotates) in enumerate(zip(sliding, rotated, strict=True)):
        windowed = bool(window) and slides
        rope = local if windowed else full
        dense = i < sizes.dense_layers  # those before mixtures keep their RoPE
        if not rotates or (window and architecture.full_without_rope and not windowed and not dense):
            rope = None
        layers.append(LayerConfig(rope, window if windowed else None, experts=sizes.experts_of(i)))
    return with_kinds(with_sizes(tuple(layers), sizes.own, sizes.beside), sizes)
