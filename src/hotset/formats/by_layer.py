"""Families whose layers have heads and FFNs of different sizes, and share keys and values (Gemma 4)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hotset.architectures.row import Architecture
from hotset.core.config import LayerConfig
from hotset.core.errors import CheckpointError
from hotset.core.heads import HeadsConfig
from hotset.formats.keys import REQUIRED, Keys
from hotset.formats.tensor import Tensor

_KEYS_AND_VALUES = frozenset({"attn_k", "attn_v", "attn_k_norm"})


@dataclass(frozen=True)
class LayerSizes:
    """One layer's sizes, and what it lacks."""

    heads: HeadsConfig
    ffn: int
    kv_from: int | None = None
    """Index of the layer whose keys and values this one reads; None: its own (as `LayerConfig`)."""
    without_values: bool = False
    """Values are the keys, before their norm."""

    @property
    def lacking(self) -> frozenset[str]:
        """Names of tensors that the layer has not."""
        if self.kv_from is not None:
            return _KEYS_AND_VALUES
        return frozenset({"attn_v"}) if self.without_values else frozenset()


def from_gguf(keys: Keys, sliding: list[bool], tensors: Mapping[str, Tensor]) -> tuple[LayerSizes, ...]:
    """Read GGUF's key-values; `sliding` says which layers attend to a window."""
    layers = len(sliding)
    heads = _each(keys, "attention.head_count", layers)
    kv_heads = _each(keys, "attention.head_count_kv", layers)
    ffn = _each(keys, "feed_forward_length", layers)
    sizes: list[int] = []
    for suffix in ("", "_swa"):
        size = keys.integer(f"attention.key_length{suffix}", sizes[0] if sizes else REQUIRED)
        if (value := keys.integer(f"attention.value_length{suffix}", size)) != size:
            raise keys.refuse(f"attention.value_length{suffix}", f"{size} like the key's", value)
        sizes.append(size)
    sources = _sources(keys, "attention.shared_kv_layers", sliding)
    return tuple(
        LayerSizes(
            HeadsConfig(heads[i], kv_heads[i], sizes[sliding[i]]),
            ffn[i],
            sources[i],
            not sliding[i] and f"blk.{i}.attn_v.weight" not in tensors,
        )
        for i in range(layers)
    )


def layer_input(keys: Keys, key: str, architecture: Architecture) -> int:
    """Numbers of a layer's own embedding of a token, in families that have such; otherwise 0."""
    return keys.integer(key, 0, low=0) if "inp_gate" in architecture.tensors else 0


def most_heads(keys: Keys) -> int:
    """The heads of the layer that has the most."""
    stated = keys.get("attention.head_count")
    if not isinstance(stated, np.ndarray):
        return keys.integer("attention.head_count")
    return max(_each(keys, "attention.head_count", len(stated)), default=1)


def from_config(keys: Keys, sliding: list[bool]) -> tuple[LayerSizes, ...]:
    """Read config.json: released files and transformers' own have different keys."""
    layers = len(sliding)
    heads = keys.integer("num_attention_heads")
    kv_heads, size, ffn = (
        keys.integer(key) for key in ("num_key_value_heads", "head_dim", "intermediate_size")
    )
    counts = keys.get("num_attention_heads_per_layer")
    if counts is not None:  # only these differ (Laguna)
        each = _each(keys, "num_attention_heads_per_layer", layers)
        return tuple(LayerSizes(HeadsConfig(count, kv_heads, size), ffn) for count in each)
    same = keys.flag("attention_k_eq_v")
    of_full = HeadsConfig(
        heads,
        keys.integer("num_global_key_value_heads", kv_heads) if same else kv_heads,
        keys.integer("global_head_dim", 512),
    )
    stated = keys.get("per_layer_config", {})
    if not isinstance(stated, dict):
        raise keys.refuse("per_layer_config", "a table", stated)
    table = keys.section("per_layer_config", stated)
    sources = _sources(keys, "num_kv_shared_layers", sliding)
    found = []
    for i in range(layers):
        alike = sliding[i] or keys.stated("per_layer_config")  # but for those of the table, be it empty
        own = HeadsConfig(heads, kv_heads, size) if alike else of_full
        if str(i) in stated:
            layer = table.section(str(i), stated[str(i)])
            own = HeadsConfig(
                heads, layer.integer("num_key_value_heads", kv_heads), layer.integer("head_dim", size)
            )
        wide = sources[i] is not None and keys.flag("use_double_wide_mlp")
        found.append(LayerSizes(own, ffn * (1 + wide), sources[i], same and not sliding[i]))
    return tuple(found)


def check(where: str, sizes: tuple[LayerSizes, ...]) -> None:
    """Refuse heads that don't share the key/value heads evenly, and sharing among unequal ones."""
    for i, layer in enumerate(sizes):
        if layer.heads.n_heads % layer.heads.n_kv_heads:
            raise CheckpointError(
                f"{where}: layer {i}: {layer.heads.n_heads} heads cannot share {layer.heads.n_kv_heads} of "
                "keys and values"
            )
        if layer.kv_from is not None and sizes[layer.kv_from].heads != layer.heads:
            raise CheckpointError(
                f"{where}: layer {i} reads keys of layer {layer.kv_from}, which has other heads"
            )


def with_sizes(
    layers: tuple[LayerConfig, ...], sizes: tuple[LayerSizes, ...], beside: bool
) -> tuple[LayerConfig, ...]:
    """The layers with their own sizes, where there are such."""
    if not sizes:
        return layers
    return tuple(
        replace(layer, heads=own.heads, ffn_size=own.ffn, kv_from=own.kv_from, beside=beside)
        for layer, own in zip(layers, sizes, strict=True)
    )


def with_scales(layers: tuple[LayerConfig, ...], tensors: Mapping[str, Tensor]) -> tuple[LayerConfig, ...]:
    """The layers with the factors on what they give, where files have such."""
    scaled = []
    for i, layer in enumerate(layers):
        name = f"blk.{i}.layer_output_scale.weight"
        scaled.append(
            replace(layer, scale=float(tensors[name].to_float32()[0])) if name in tensors else layer
        )
    return tuple(scaled)


def check_factors(where: str, tensors: Mapping[str, Tensor], layers: int) -> None:
    """Refuse factors on experts that are not positive, as experts are known by positive weights."""
    for i in range(layers):
        name = f"blk.{i}.ffn_down_exps_scale.weight"
        if name in tensors and not (tensors[name].to_float32() > 0).all():
            raise CheckpointError(f"{where}: tensor {name}: expected positive numbers, found others")


def _each(keys: Keys, key: str, layers: int) -> list[int]:
    """A number for each layer, where there may be one for all."""
    stated = keys.get(key, REQUIRED)
    if not isinstance(stated, np.ndarray | list):
        return [keys.integer(key)] * layers
    numbers = [int(x) for x in stated if isinstance(x, int | np.integer) and 0 < x < 1 << 24]
    if len(numbers) != layers:
        raise keys.refuse(key, f"a positive number, or one for each of {layers} layers", stated)
    return numbers


def _sources(keys: Keys, key: str, sliding: list[bool]) -> list[int | None]:
    """For each layer that has no keys and values of its own: the last one of its kind that has."""
    first = len(sliding) - keys.integer(key, 0, low=0, high=len(sliding) - 1)
    last = {kind: i for i, kind in enumerate(sliding[:first])}
    for kind in sliding[first:]:
        if kind not in last:
            raise keys.refuse(key, "fewer layers, as some would find no keys to share", len(sliding) - first)
    return [None] * first + [last[kind] for kind in sliding[first:]]
