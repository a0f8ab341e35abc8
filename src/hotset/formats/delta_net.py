"""Gated delta nets in model files: which layers are, their shape, and their tensors."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.architectures.row import Architecture
from hotset.core.config import DeltaNetConfig, MambaConfig, Recurrent
from hotset.core.errors import CheckpointError
from hotset.formats.keys import Keys
from hotset.formats.tensor import Tensor, tensor_from_array
from hotset.formats.tensor_table import TensorTable, split_name

_INTERVAL = 4
"""Every so many-th layer has attention."""

_LARGEST = 1 << 16

GGUF_NAMES: Mapping[str, str] = {
    "ssm_a": "ssm_a.weight",
    "ssm_d": "ssm_d.weight",
    "ssm_dt": "ssm_dt.weight",  # Ollama's
    "ssm_dt.bias": "ssm_dt.weight",
}
"""What a layer's vectors are called in GGUF -> their final names."""

VECTORS = ("ssm_a", "ssm_conv1d", "shortconv_conv")
"""Parts that Hugging Face's files store otherwise."""

FUSED = ("ssm_in", "ssm_ba")
"""Qwen3-Next's matrices, the parts of each key head together: q, k, v and z, or beta and alpha."""


def from_gguf(keys: Keys, architecture: Architecture, layers: int) -> tuple[DeltaNetConfig, tuple[bool, ...]]:
    """Read GGUF's key-values: the shape, and which layers are delta nets."""
    heads = keys.integer("ssm.time_step_rank", high=_LARGEST)
    config = DeltaNetConfig(
        n_key_heads=keys.integer("ssm.group_count", high=_LARGEST),
        n_value_heads=heads,
        head_dim=keys.integer("ssm.state_size", high=_LARGEST),
        kernel=keys.integer("ssm.conv_kernel", low=2, high=64),
        tiled=keys.flag("ssm.v_head_reordered", architecture.gguf_tiled),  # the key is Ollama's
    )
    _check_heads(keys, "ssm.group_count", config)
    if (inner := keys.integer("ssm.inner_size", heads * config.head_dim)) != heads * config.head_dim:
        raise keys.refuse("ssm.inner_size", f"{heads} heads of {config.head_dim} numbers", inner)
    stated = keys.get("attention.recurrent_layers")
    if stated is None:
        kv_heads = keys.get("attention.head_count_kv")  # Ollama's: 0 where there is no attention
        if not isinstance(kv_heads, np.ndarray) or len(kv_heads) < layers or kv_heads.all():
            return config, _at_intervals(keys, layers)
        stated = kv_heads == 0
    # There may be entries for the blocks that predict further tokens.
    if not isinstance(stated, np.ndarray) or len(stated) < layers or not np.isin(stated, (0, 1)).all():
        raise keys.refuse("attention.recurrent_layers", f"true or false for each of {layers} layers", stated)
    return config, tuple(bool(recurrent) for recurrent in stated[:layers])


def from_config(keys: Keys, layers: int) -> tuple[DeltaNetConfig, tuple[bool, ...]]:
    """Read config.json likewise."""
    head_dim = keys.integer("linear_key_head_dim", high=_LARGEST)
    if (value_dim := keys.integer("linear_value_head_dim")) != head_dim:
        raise keys.refuse("linear_value_head_dim", f"{head_dim} like the key's", value_dim)
    config = DeltaNetConfig(
        n_key_heads=keys.integer("linear_num_key_heads", high=_LARGEST),
        n_value_heads=keys.integer("linear_num_value_heads", high=_LARGEST),
        head_dim=head_dim,
        kernel=keys.integer("linear_conv_kernel_dim", low=2, high=64),
        tiled=False,
    )
    _check_heads(keys, "linear_num_key_heads", config)
    kinds = keys.get("layer_types")
    if kinds is None:
        return config, _at_intervals(keys, layers)
    known = ("full_attention", "linear_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in known for kind in kinds):
        raise keys.refuse("layer_types", f"{layers} of {' and '.join(known)}", kinds)
    return config, tuple(kind == "linear_attention" for kind in kinds)


def add_from_gguf(table: TensorTable, name: str, tensor: Tensor, config: Recurrent | None) -> bool:
    """Take in a tensor that GGUF calls or cuts otherwise; False: it is none of these."""
    layer, part = split_name(name)
    if config is None or layer is None:
        return False
    if part in GGUF_NAMES or (part == "ssm_norm.weight" and isinstance(config, MambaConfig)):
        target = f"blk.{layer}.{GGUF_NAMES.get(part, part)}"
        count = math.prod(tensor.shape)  # Mamba-2's are columns, its norm's weights rows for each group
        table.add_made(target, (count,), partial(_flat, target, tensor, count))
    elif not isinstance(config, DeltaNetConfig):
        return False
    elif part.removesuffix(".weight") in FUSED:
        add_fused(table, layer, part.removesuffix(".weight"), tensor, config)
    else:
        return False
    return True


def add_vector(table: TensorTable, name: str, part: str, tensor: Tensor) -> None:
    """Take in a part that Hugging Face's files store otherwise than GGUF's: `VECTORS`."""
    shape = tensor.shape
    if part in ("ssm_conv1d", "shortconv_conv") and len(shape) == 3 and shape[1] == 1:
        shape = (shape[0], shape[2])
    table.add_made(name, shape, partial(_converted, name, part, tensor, shape))


def add_fused(table: TensorTable, layer: int, part: str, tensor: Tensor, config: DeltaNetConfig) -> None:
    """Take in one of `FUSED` as its parts. Raises `CheckpointError` for another number of rows."""
    keys, d = config.n_key_heads, config.head_dim
    group = config.n_value_heads // keys
    if part == "ssm_in":
        sizes = {"q": d, "k": d, "v": group * d, "z": group * d}
        parts = {"attn_qkv": ("q", "k", "v"), "attn_gate": ("z",)}
    else:
        sizes = {"beta": group, "alpha": group}
        parts = {"ssm_beta": ("beta",), "ssm_alpha": ("alpha",)}
    period = sum(sizes.values())
    if tensor.shape[0] != keys * period:
        raise CheckpointError(
            f"{tensor.name}: expected {keys * period} rows, {period} for each of {keys} key heads, "
            f"found {tensor.shape[0]}"
        )
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    for name, pieces in parts.items():
        rows = np.concatenate(
            [
                (np.arange(keys)[:, None] * period + starts[piece] + np.arange(sizes[piece])).ravel()
                for piece in pieces
            ]
        )
        target = f"blk.{layer}.{name}.weight"
        table.add_made(target, (len(rows), *tensor.shape[1:]), partial(_gathered, target, tensor, rows))


def _check_heads(keys: Keys, key: str, config: DeltaNetConfig) -> None:
    if config.n_value_heads % config.n_key_heads:
        raise keys.refuse(key, f"a divisor of the {config.n_value_heads} value heads", config.n_key_heads)


def _at_intervals(keys: Keys, layers: int) -> tuple[bool, ...]:
    interval = keys.integer("full_attention_interval", _INTERVAL)
    return tuple((layer + 1) % interval != 0 for layer in range(layers))


_AS_GGUF: Mapping[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    "ssm_a": lambda logarithm: -np.exp(logarithm),
    "ssm_conv1d": lambda factors: factors,
    "shortconv_conv": lambda factors: factors,
}


@np.errstate(over="ignore")  # damage shows in what is computed
def _converted(name: str, part: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor_from_array(name, _AS_GGUF[part](tensor.to_float32()).reshape(shape))


def _gathered(name: str, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """Those rows, whatever the type: a copy."""
    data = tensor.data.reshape(tensor.shape[0], -1)[rows].reshape(-1)
    return Tensor(name, tensor.type, (len(rows), *tensor.shape[1:]), data, tensor.scale)


def _flat(name: str, tensor: Tensor, count: int) -> Tensor:
    return Tensor(name, tensor.type, (count,), tensor.data, tensor.scale)
