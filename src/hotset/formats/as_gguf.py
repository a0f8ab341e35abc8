"""An opened model, GGUF or Hugging Face directory, as a GGUF file would hold it: key-values and tensors.

Hugging Face models keep their tokenizer as it is: ``tokenizer.huggingface.json`` (a key of the format's own
description) has tokenizer.json, and ``hotset.huggingface.NAME`` the small files beside it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.architectures.row import Architecture
from hotset.architectures.table import ARCHITECTURES
from hotset.core.config import ModelConfig, NormKind, RopeConfig
from hotset.core.errors import CheckpointError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.ffn_plan import plan_keys
from hotset.formats.gguf_file import read_gguf
from hotset.formats.gguf_writer import same_metadata
from hotset.formats.mapped import read_bytes
from hotset.formats.pooling import KEY as POOLING
from hotset.formats.pooling import Pooling, read_pooling
from hotset.formats.rope import F32, LONG_FACTORS, ROPE_FACTORS, plain_frequencies
from hotset.formats.tensor import Tensor, tensor_from_array

TOKENIZER = "tokenizer.huggingface.json"
BESIDE = "hotset.huggingface."
"""Keys of tokenizer.json, and of the files beside it by their names."""
BESIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
)
_NUMBERS = (
    "norm_eps",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "logit_soft_cap",
    "attention_soft_cap",
)
"""A configuration's numbers that GGUF has in float32."""


def as_gguf(checkpoint: Checkpoint) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Key-values to write, and tensors by GGUF's names, which are made when they are looked up.

    What GGUF has no key for is found by `check_config` once the file can be opened.
    """
    architecture = next(a for a in ARCHITECTURES if a.name == checkpoint.config.architecture)
    if checkpoint.path.is_dir():
        _check_writable(checkpoint)
        metadata = _metadata(checkpoint, architecture)
        tensors: Mapping[str, Tensor] = _Tensors(checkpoint, architecture)
    else:
        file = read_gguf(checkpoint.path)
        metadata = same_metadata(checkpoint.metadata)
        tensors = {}
        for name, tensor in file.tensors.items():
            named = name.replace("ffn_down_t.bias", "ffn_down.bias")  # PowerInfer's name
            tensors[named] = replace(tensor, name=named)
        if file.powerinfer:  # whose OPT files leave out the one and count more in the other
            metadata |= _norm_key(checkpoint.config)
            metadata[f"{architecture.name}.context_length"] = checkpoint.config.context_length
            metadata.pop("powerinfer.sparse_threshold", None)
            metadata |= plan_keys([layer.ffn for layer in checkpoint.config.layers])
    # PowerInfer's models have ReLU whatever their architecture; a plain GGUF has to say it.
    if checkpoint.config.activation is not architecture.activation:
        metadata["hotset.activation"] = checkpoint.config.activation.value
    metadata.setdefault("general.quantization_version", 2)
    return metadata, tensors


def check_config(expected: ModelConfig, found: ModelConfig) -> None:
    """Raise `CheckpointError` if a model read back from GGUF is another than it was, plans of FFNs aside."""

    def numbers(config: ModelConfig, layer: int) -> list[float]:
        rope = config.layers[layer].rope
        if rope is None:
            return []
        return [*rope.inverse_frequencies, *rope.long_frequencies, rope.long_from, rope.magnitude]

    def rest(config: ModelConfig) -> ModelConfig:
        numbers: dict[str, Any] = dict.fromkeys(_NUMBERS, 0.0)
        return replace(config, layers=(), attention_scale=0.0, query_growth=None, **numbers)

    def scales(config: ModelConfig) -> list[float]:
        growth = config.query_growth
        grown = [growth.factor, growth.context] if growth else [0.0, 0.0]
        scale = config.attention_scale or config.head_dim**-0.5
        return [scale, *grown, *(getattr(config, name) for name in _NUMBERS)]

    def numbers_of(config: ModelConfig) -> list[tuple[object, ...]]:
        return [(x.heads, x.ffn_size, x.kv_from, x.beside, x.scale) for x in config.layers]

    if rest(expected) != rest(found) or numbers_of(expected) != numbers_of(found):
        problem = "its sizes"
    elif not np.allclose(scales(expected), scales(found), 1e-6, 0):
        problem = "its norm's epsilon or its attention's scale, or another factor"
    elif [layer.window for layer in expected.layers] != [layer.window for layer in found.layers]:
        problem = "which layers attend to a window"
    elif any(
        len(a) != len(b) or not np.allclose(a, b, 1e-6, 0)
        for a, b in ((numbers(expected, i), numbers(found, i)) for i in range(expected.n_layers))
    ):
        problem = "its RoPE frequencies"
    else:
        return
    raise CheckpointError(f"GGUF has no key for this model's options: {problem} would be lost")


def _check_writable(checkpoint: Checkpoint) -> None:
    """Refuse directories of which not all is written."""
    config = checkpoint.config
    kinds = {
        "mixtures of experts": config.mixture,
        "models with recurrent layers": config.recurrent,
        "models whose layers differ in their heads": not config.uniform,
    }
    for kind in (kind for kind, found in kinds.items() if found):
        raise CheckpointError(
            f"{checkpoint.path}: {kind} are written from GGUF files only: convert it with llama.cpp's "
            "convert_hf_to_gguf.py first"
        )


def _metadata(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Any]:
    c, name = checkpoint.config, architecture.name
    keys: dict[str, Any] = {
        "context_length": c.context_length,
        "embedding_length": c.hidden_size,
        "block_count": c.n_layers,
        "feed_forward_length": c.ffn_size,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "vocab_size": c.vocab_size,
    }
    if c.attention_scale:
        keys["attention.scale"] = c.attention_scale
    keys |= _factors(c, architecture)
    if windows := [layer.window for layer in c.layers if layer.window]:
        keys["attention.sliding_window"] = windows[0]
        if len(windows) < c.n_layers:
            keys["attention.sliding_window_pattern"] = np.array([bool(layer.window) for layer in c.layers])
    full, local = _ropes(c)
    if full:
        keys["rope.dimension_count"] = full.dim
        keys["rope.freq_base"] = _theta(full) or 1e4
        if full.magnitude != 1:
            keys["rope.scaling.attn_factor"] = full.magnitude
        if full.long_frequencies:
            keys["rope.scaling.original_context_length"] = full.long_from
    if local and (architecture.local_rope_theta is not None or architecture.local_rope_plain):
        keys["rope.freq_base_swa"] = _theta(local) or 1e4
    metadata: dict[str, Any] = {"general.architecture": name, "general.name": checkpoint.path.resolve().name}
    metadata |= {f"{name}.{key}": value for key, value in keys.items()} | _norm_key(c)
    if pooling := read_pooling(checkpoint):
        metadata[f"{name}.{POOLING}"] = tuple(Pooling).index(pooling)
    for key, file in [(TOKENIZER, "tokenizer.json"), *((BESIDE + file, file) for file in BESIDE_FILES)]:
        path = checkpoint.path / file
        if key == BESIDE + "config.json":
            metadata[key] = json.dumps(checkpoint.metadata, ensure_ascii=False)  # with what was overridden
        elif path.is_file():
            try:
                metadata[key] = read_bytes(path).decode()
            except UnicodeDecodeError:
                raise CheckpointError(f"{path}: expected UTF-8 text") from None
    return metadata


def _factors(c: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """Factors and caps, where they do something."""
    factors = {
        "embedding_scale": c.embedding_scale if architecture.multipliers else 1.0,
        "residual_scale": c.residual_scale,
        "logit_scale": 1 / c.logit_scale,
    }
    caps = {
        "attn_logit_softcapping": c.attention_soft_cap,
        "final_logit_softcapping": c.logit_soft_cap,
        "attention.temperature_scale": c.query_growth.factor if c.query_growth else 0.0,
        "rope.scaling.original_context_length": c.query_growth.context if c.query_growth else 0,
    }
    found = {key: value for key, value in factors.items() if value != 1}
    return found | {key: value for key, value in caps.items() if value}


def _norm_key(config: ModelConfig) -> dict[str, float]:
    kind = "rms_" if config.norm is NormKind.RMS else ""
    return {f"{config.architecture}.attention.layer_norm_{kind}epsilon": config.norm_eps}


def _ropes(config: ModelConfig) -> tuple[RopeConfig | None, RopeConfig | None]:
    """RoPE of a fully attending layer (of any, where none is) and of a windowed one."""
    full = [layer.rope for layer in config.layers if layer.rope and not (layer.window or layer.recurrent)]
    local = [layer.rope for layer in config.layers if layer.window]
    return next(iter(full or local), None), local[0] if local else None


def _theta(rope: RopeConfig) -> float | None:
    """The base of plain frequencies; None for scaled ones, or where the ratio is all there is."""
    if len(rope.inverse_frequencies) < 2 or rope.inverse_frequencies[0] != 1:
        return None
    theta = rope.inverse_frequencies[1] ** (-rope.dim / 2)
    for digits in range(1, 9):  # the power has blown rounding up
        rounded = float(f"{theta:.{digits}g}")
        if np.array_equal(
            plain_frequencies(rounded, rope.dim), np.array(rope.inverse_frequencies, np.float32)
        ):
            return rounded
    return None


class _Tensors(Mapping[str, Tensor]):
    """A Hugging Face model's tensors: q and k as the architecture's GGUF has them, RoPE's scaling added."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        self._tensors = checkpoint.tensors
        self._config = checkpoint.config
        self._interleaved = architecture.gguf_rope_interleaved
        full, _ = _ropes(checkpoint.config)
        self._factors = _divisors(full) if full else {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._factors:
            return self._factors[name]
        tensor = self._tensors[name]
        if not (self._interleaved and name.startswith("blk.")):
            return tensor
        _, layer, part = name.split(".", 2)
        rope = self._config.layers[int(layer)].rope
        if rope and not rope.interleaved and part.split(".")[0] in ("attn_q", "attn_k"):
            rows = _interleaved(tensor.shape[0], self._config.head_dim, rope.dim)
            data = tensor.data.reshape(tensor.shape[0], -1)[rows].reshape(-1)
            return replace(tensor, data=data)
        return tensor

    def __iter__(self) -> Iterator[str]:
        yield from (*self._tensors, *self._factors)

    def __len__(self) -> int:
        return len(self._tensors) + len(self._factors)


def _divisors(rope: RopeConfig) -> dict[str, Tensor]:
    """Tensors of what the frequencies of the base that is written are divided by, where it is not theirs."""
    found: dict[str, tuple[float, ...]] = {}
    if rope.long_frequencies:
        found = dict(zip(LONG_FACTORS, (rope.inverse_frequencies, rope.long_frequencies), strict=True))
    elif _theta(rope) is None:
        found = {ROPE_FACTORS: rope.inverse_frequencies}
    plain = plain_frequencies(_theta(rope) or 1e4, rope.dim)
    own: dict[str, F32] = {name: np.array(frequencies, np.float32) for name, frequencies in found.items()}
    return {name: tensor_from_array(name, plain / frequencies) for name, frequencies in own.items()}


def _interleaved(rows: int, head_dim: int, rotated: int) -> NDArray[np.int64]:
    """Which row comes where, when pairs (i, i + rotated / 2) of each head become neighbours."""
    head = np.arange(head_dim)
    head[:rotated] = head[:rotated].reshape(2, -1).T.reshape(-1)
    order: NDArray[np.int64] = (np.arange(0, rows, head_dim)[:, None] + head).reshape(-1)
    return order
