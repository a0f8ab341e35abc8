"""Layers with a recurrent state in model files: which are, and their shape."""

from dataclasses import replace

import numpy as np

from hotset.architectures.row import Architecture
from hotset.core.config import LayerConfig, Recurrent, ShortConvConfig
from hotset.formats import delta_net
from hotset.formats.keys import Keys
from hotset.formats.tensor_table import Sizes

Found = tuple[Recurrent, tuple[bool, ...]] | tuple[None, tuple[()]]
"""Their shape, and which layers are such; neither in families that have none."""


def from_gguf(keys: Keys, architecture: Architecture, layers: int) -> Found:
    """Read GGUF's key-values."""
    if architecture.delta_net:
        return delta_net.from_gguf(keys, architecture, layers)
    if not architecture.short_conv:
        return None, ()
    config = ShortConvConfig(
        keys.integer("embedding_length"), keys.integer("shortconv.l_cache", low=2, high=64)
    )
    return config, without_kv_heads(keys, layers)


def from_config(keys: Keys, architecture: Architecture, layers: int) -> Found:
    """Read config.json."""
    if architecture.delta_net:
        return delta_net.from_config(keys, layers)
    if not architecture.short_conv:
        return None, ()
    config = ShortConvConfig(keys.integer("hidden_size"), keys.integer("conv_L_cache", low=2, high=64))
    full = keys.get("full_attn_idxs")  # in older files
    kinds = keys.get("layer_types")
    if kinds is None and isinstance(full, list):
        return config, tuple(layer not in full for layer in range(layers))
    known = ("full_attention", "conv")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise keys.refuse("layer_types", f"{layers} of {' and '.join(known)}", kinds)
    return config, tuple(kind == "conv" for kind in kinds)


def without_kv_heads(keys: Keys, layers: int) -> tuple[bool, ...]:
    """Read which layers have no attention: those without key/value heads."""
    stated = keys.get("attention.head_count_kv")
    if not isinstance(stated, np.ndarray) or len(stated) != layers:
        raise keys.refuse("attention.head_count_kv", f"a number for each of {layers} layers", stated)
    return tuple(bool(heads == 0) for heads in stated)


def kv_heads(keys: Keys, heads: int, recurrent: tuple[bool, ...]) -> int:
    """Read the key/value heads of layers with attention; where files tell each layer's, the others have 0."""
    stated = keys.get("attention.head_count_kv")
    if recurrent and isinstance(stated, np.ndarray):
        own = np.unique(stated[stated != 0]) if not all(recurrent) else [heads]
        if len(own) == 1:
            return int(own[0])
    return keys.integer("attention.head_count_kv", heads)


def with_recurrent(layers: tuple[LayerConfig, ...], sizes: Sizes) -> tuple[LayerConfig, ...]:
    """Put recurrent layers in the place of attention where they are."""
    if not sizes.recurrent_layers:
        return layers
    return tuple(
        replace(layer, rope=None, window=None, recurrent=sizes.recurrent) if recurrent else layer
        for layer, recurrent in zip(layers, sizes.recurrent_layers, strict=True)
    )
