"""Layers with a recurrent state in model files: which are, and their shape."""

import math
from dataclasses import replace

import numpy as np

from hotset.architectures.row import Architecture
from hotset.core.config import LayerConfig, MambaConfig, ShortConvConfig
from hotset.formats import delta_net
from hotset.formats.keys import Keys
from hotset.formats.tensor_table import LayerKinds, Sizes

_LARGEST = 1 << 16
_NO_LIMITS = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}])
"""How config.json says that Mamba-2's steps have none."""


def from_gguf(keys: Keys, architecture: Architecture, layers: int) -> LayerKinds:
    """Read GGUF's key-values."""
    if architecture.delta_net:
        net, recurs = delta_net.from_gguf(keys, architecture, layers)
        return LayerKinds(net, recurs, tuple(not recurrent for recurrent in recurs))
    if architecture.short_conv:
        attends = _stated(keys, "attention.head_count_kv", layers)
        conv = ShortConvConfig(
            keys.integer("embedding_length"), keys.integer("shortconv.l_cache", low=2, high=64)
        )
        return LayerKinds(conv, tuple(not attention for attention in attends), attends)
    if not architecture.mamba:
        return LayerKinds()
    heads = keys.integer("ssm.time_step_rank", high=_LARGEST)
    inner = keys.integer("ssm.inner_size")
    if inner % heads:
        raise keys.refuse("ssm.inner_size", f"a multiple of the {heads} heads", inner)
    mamba = MambaConfig(
        n_groups=keys.integer("ssm.group_count", high=_LARGEST),
        n_heads=heads,
        head_dim=inner // heads,
        state_dim=keys.integer("ssm.state_size", high=_LARGEST),
        kernel=keys.integer("ssm.conv_kernel", low=2, high=64),
    )
    _check_groups(keys, "ssm.group_count", mamba)
    if not architecture.single:
        keys.require({"rope.scaling.finetuned": False})  # which says that attention is told no positions
        attends = _stated(keys, "attention.head_count_kv", layers)
        return LayerKinds(mamba, tuple(not attention for attention in attends), attends)
    feeds = _stated(keys, "feed_forward_length", layers)
    attends = _stated(keys, "attention.head_count_kv", layers)
    recurs = tuple(not (ffn or attention) for ffn, attention in zip(feeds, attends, strict=True))
    for i in range(layers):
        if feeds[i] and attends[i]:
            raise keys.refuse("feed_forward_length", f"0 in layer {i}, which has attention", "another number")
    return LayerKinds(mamba, recurs, attends, single=True)


def from_config(keys: Keys, architecture: Architecture, layers: int) -> LayerKinds:
    """Read config.json."""
    if architecture.delta_net:
        net, recurs = delta_net.from_config(keys, layers)
        return LayerKinds(net, recurs, tuple(not recurrent for recurrent in recurs))
    if architecture.short_conv:
        conv = ShortConvConfig(keys.integer("hidden_size"), keys.integer("conv_L_cache", low=2, high=64))
        recurs = _convolutions(keys, layers)
        return LayerKinds(conv, recurs, tuple(not recurrent for recurrent in recurs))
    if not architecture.mamba:
        return LayerKinds()
    mamba = MambaConfig(
        n_groups=keys.integer("n_groups", high=_LARGEST),
        n_heads=keys.integer("mamba_num_heads", high=_LARGEST),
        head_dim=keys.integer("mamba_head_dim", high=_LARGEST),
        state_dim=keys.integer("ssm_state_size", high=_LARGEST),
        kernel=keys.integer("conv_kernel", low=2, high=64),
    )
    _check_groups(keys, "n_groups", mamba)
    if (limit := keys.get("time_step_limit", _NO_LIMITS[0])) not in _NO_LIMITS:
        raise keys.refuse("time_step_limit", "0 to infinity", limit)
    known: tuple[str, ...] = ("mamba", "attention")
    if architecture.single:
        known += ("moe" if architecture.experts else "mlp",)
    kinds = keys.get("layers_block_type")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise keys.refuse("layers_block_type", f"{layers} of {', '.join(known)}", kinds)
    return LayerKinds(
        mamba,
        tuple(kind == "mamba" for kind in kinds),
        tuple(kind == "attention" for kind in kinds),
        single=architecture.single,
    )


def kv_heads(keys: Keys, heads: int, kinds: LayerKinds) -> int:
    """Read the key/value heads of layers with attention; where files tell each layer's, the others have 0."""
    stated = keys.get("attention.head_count_kv")
    if kinds.recurrent and isinstance(stated, np.ndarray):
        own = np.unique(stated[stated != 0]) if any(kinds.attends) else [heads]
        if len(own) == 1:
            return int(own[0])
    return keys.integer("attention.head_count_kv", heads)


def with_kinds(layers: tuple[LayerConfig, ...], sizes: Sizes) -> tuple[LayerConfig, ...]:
    """Put recurrent layers in place of attention where they are, and leave out what layers have not."""
    kinds = sizes.kinds
    if not kinds.recurrent:
        return layers
    return tuple(
        layer
        if kinds.attends[i] and not kinds.single
        else replace(
            layer,
            rope=layer.rope if kinds.attends[i] else None,
            window=layer.window if kinds.attends[i] else None,
            recurrent=kinds.recurrent if kinds.recurs[i] else None,
            attention=kinds.attends[i],
            feeds=kinds.has_ffn(i),
        )
        for i, layer in enumerate(layers)
    )


def _stated(keys: Keys, key: str, layers: int) -> tuple[bool, ...]:
    """Read for which layers a number is not 0."""
    stated = keys.get(key)
    if not isinstance(stated, np.ndarray) or stated.shape != (layers,) or stated.dtype.kind not in "iu":
        raise keys.refuse(key, f"an integer for each of {layers} layers", stated)
    return tuple(bool(number != 0) for number in stated)


def _convolutions(keys: Keys, layers: int) -> tuple[bool, ...]:
    full = keys.get("full_attn_idxs")  # in older files
    kinds = keys.get("layer_types")
    if kinds is None and isinstance(full, list):
        return tuple(layer not in full for layer in range(layers))
    known = ("full_attention", "conv")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise keys.refuse("layer_types", f"{layers} of {' and '.join(known)}", kinds)
    return tuple(kind == "conv" for kind in kinds)


def _check_groups(keys: Keys, key: str, config: MambaConfig) -> None:
    if config.n_heads % config.n_groups:
        raise keys.refuse(key, f"a divisor of the {config.n_heads} heads", config.n_groups)
