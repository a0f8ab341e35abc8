"""Multi-head latent attention in model files: its sizes, and its matrices head by head."""

import math
from functools import partial

import numpy as np

from hotset.architectures.row import Architecture
from hotset.core.heads import LatentConfig
from hotset.formats.experts import add_stack, of_numbers, transposed
from hotset.formats.keys import REQUIRED, Keys
from hotset.formats.rope import yarn_magnitude
from hotset.formats.tensor import Tensor, TensorType
from hotset.formats.tensor_table import Sizes, TensorTable

_LARGEST = 1 << 16
FUSED = "attn_kv_b"
"""Every head's rows of keys, then of values, as older GGUF files and Hugging Face's have them."""


def from_gguf(keys: Keys, architecture: Architecture) -> LatentConfig | None:
    """Read GGUF's key-values; None: attention is another.

    Newer files state what is kept of a position as if it were a key, and a head's sizes under ``_mla``.
    """
    if not architecture.latent:
        return None
    size, value = (
        keys.integer(f"{of}_mla", keys.get(of, REQUIRED), high=_LARGEST)
        for of in ("attention.key_length", "attention.value_length")
    )
    rope_dim = keys.integer("rope.dimension_count", low=2, high=max(size - 1, 2))
    return _checked(
        keys,
        "rope.dimension_count",
        LatentConfig(
            rank=keys.integer("attention.kv_lora_rank", high=_LARGEST),
            rope_dim=rope_dim,
            nope_dim=size - rope_dim,
            value_dim=value,
            query_rank=keys.integer("attention.q_lora_rank", 0, low=0, high=_LARGEST),
        ),
    )


def from_config(keys: Keys, architecture: Architecture) -> LatentConfig | None:
    """Read config.json; None: attention is another."""
    if not architecture.latent:
        return None
    return _checked(
        keys,
        "qk_rope_head_dim",
        LatentConfig(
            rank=keys.integer("kv_lora_rank", high=_LARGEST),
            rope_dim=keys.integer("qk_rope_head_dim", low=2, high=_LARGEST),
            nope_dim=keys.integer("qk_nope_head_dim", high=_LARGEST),
            value_dim=keys.integer("v_head_dim", high=_LARGEST),
            query_rank=keys.integer("q_lora_rank", high=_LARGEST) if keys.get("q_lora_rank") else 0,
        ),
    )


def scale_from_gguf(keys: Keys, latent: LatentConfig) -> float:
    """The factor on scores: with YaRN it grows, by a multiplier that files state a tenth of."""
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0, high=1e3) / 0.1
    return _scale(latent, keys.number("rope.scaling.factor", 1.0, high=1e6), multiplier)


def scale_from_config(table: Keys, latent: LatentConfig) -> float:
    """The same of config.json's table of RoPE."""
    if table.get("rope_type", table.get("type", "default")) == "default":
        return _scale(latent, 1.0, 0.0)
    return _scale(
        latent, table.number("factor", 1.0, high=1e6), table.number("mscale_all_dim", 0.0, high=1e3)
    )


def add_fused(table: TensorTable, layer: int, fused: Tensor, sizes: Sizes) -> None:
    """Take `FUSED` (H (p + v), c) in as its halves: (H, c, p), where rounded numbers are rounded again, to 8
    bits, as blocks lie along the other axis; and (H, v, c)."""
    heads, rank, plain, value = sizes.dimensions("Acnv")
    expected = (heads * (plain + value), rank)
    if fused.shape != expected:
        raise table.mismatch(f"blk.{layer}.{FUSED}.weight", expected, fused.shape)
    kind = fused.type
    if kind.block_size > 1:
        kind = TensorType.F16 if plain % TensorType.Q8_0.block_size else TensorType.Q8_0
    keys = partial(_keys_of, fused, kind, plain, plain + value)
    add_stack(table, f"blk.{layer}.attn_k_b.weight", kind, (heads, rank, plain), keys)
    values = partial(_values_of, fused, plain, plain + value)
    scale = None if fused.scale is None else fused.scale.repeat(heads)
    add_stack(table, f"blk.{layer}.attn_v_b.weight", fused.type, (heads, value, rank), values, scale)


def _checked(keys: Keys, key: str, latent: LatentConfig) -> LatentConfig:
    if latent.rope_dim % 2:
        raise keys.refuse(key, "an even number", latent.rope_dim)
    return latent


def _scale(latent: LatentConfig, factor: float, multiplier: float) -> float:
    return yarn_magnitude(factor, multiplier) ** 2 / math.sqrt(latent.query_dim)


def _keys_of(fused: Tensor, kind: TensorType, plain: int, both: int, head: int) -> Tensor:
    rows = fused.rows(head * both, head * both + plain)
    if rows.type.block_size == 1:
        return transposed(rows)
    numbers = np.ascontiguousarray(rows.to_float32().T)
    if kind is TensorType.F16:
        return of_numbers(rows.name, kind, numbers.astype(np.float16))
    from gguf import GGMLQuantizationType, quantize

    data = quantize(numbers, GGMLQuantizationType.Q8_0).reshape(-1)
    return Tensor(rows.name, kind, numbers.shape, data)


def _values_of(fused: Tensor, plain: int, both: int, head: int) -> Tensor:
    return fused.rows(head * both + plain, (head + 1) * both)
