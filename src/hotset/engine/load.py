"""The one place that knows everything: from a model's name to a model that runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hotset.backends.base import KVCache
from hotset.config import FFNPlan, ModelConfig, Way
from hotset.errors import RequestError
from hotset.formats.checkpoint import Checkpoint
from hotset.model.transformer import Transformer

if TYPE_CHECKING:
    from hotset.backends.cpu import CpuBackend
    from hotset.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Told (done, total) while a model's parts are built."""

DEFAULT_CONTEXT = 4096
"""Tokens of context unless asked otherwise: a cache for all that models allow can take gigabytes."""

KV_TYPES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}
"""Types of the KV cache and the bytes of one number."""


@dataclass(frozen=True)
class Model:
    """A model in memory, shared by everything that runs it; immutable."""

    path: Path
    transformer: Transformer
    tokenizer: "Tokenizer"
    backend: "CpuBackend"
    weight_bytes_per_token: int
    """Bytes of weights that decoding one token reads, each in its type's own size."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.transformer.config

    def kv_cache(self, context: int | None = None, kv_type: str = "f16") -> KVCache:
        """Room for `context` tokens; None: what the model was trained for, at most `DEFAULT_CONTEXT`."""
        return self.transformer.kv_cache(check_context(self.config, context), check_kv_type(kv_type))


def load_model(
    model: str | Path | None = None,
    *,
    threads: int | None = None,
    ffn: Way | None = None,
    progress: Progress | None = None,
) -> Model:
    """Find, open and build a model for the CPU.

    `model` is a path, ``hf:org/repo[:file]`` or None for the demo model; `threads` None means one a physical
    core; `ffn` (dense or exact) takes the place of the file's plan in layers stored by neuron. Raises
    `CheckpointError` for what cannot be read or run.
    """
    from hotset.backends.cpu import CpuBackend
    from hotset.model.build import build_transformer
    from hotset.tokenizer import Tokenizer

    checkpoint = with_way(open_model(model), ffn)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    backend = CpuBackend(threads=threads)
    transformer = build_transformer(checkpoint, backend, progress)
    return Model(checkpoint.path, transformer, tokenizer, backend, weight_bytes_per_token(checkpoint))


def open_model(model: str | Path | None = None) -> Checkpoint:
    """Find a model by its name, as `load_model`, and read its headers."""
    from hotset.formats import locate, open_checkpoint

    return open_checkpoint(locate(None if model is None else str(model)))


def with_way(checkpoint: Checkpoint, way: Way | None) -> Checkpoint:
    """The checkpoint with another way of choosing neurons in every layer stored by neuron; None: unchanged.

    Dense always does, exact where the activation produces zeros; the others need what only a file's own plan
    has: `RequestError`.
    """
    if way is None:
        return checkpoint
    config = checkpoint.config
    if way not in (Way.DENSE, Way.EXACT):
        raise RequestError(
            f"ffn is {way.value!r}: expected dense or exact, or none for the file's plan (--ffn)"
        )
    if way is Way.EXACT and not config.activation.zero_producing:
        raise RequestError(
            f"exact needs an activation that produces zeros: {checkpoint.path} has "
            f"{config.activation.value}; calibrate thresholds instead (hotset calibrate)"
        )
    layers = tuple(replace(layer, ffn=layer.ffn and FFNPlan(way)) for layer in config.layers)
    return replace(checkpoint, config=replace(config, layers=layers))


def weight_bytes_per_token(checkpoint: Checkpoint) -> int:
    """Bytes of the weights that one decoded token reads: all but the embeddings' other rows."""
    tied = "output.weight" not in checkpoint.tensors
    rows_only = {"position_embd.weight"} if tied else {"position_embd.weight", "token_embd.weight"}
    return sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if name not in rows_only)


def kv_cache_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """Bytes of a KV cache of `context` tokens."""
    numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim * context
    return int(numbers * KV_TYPES[check_kv_type(kv_type)])


def check_context(config: ModelConfig, context: int | None) -> int:
    """The tokens of context to make room for, or `RequestError`."""
    if context is None:
        return min(config.context_length, DEFAULT_CONTEXT)
    if not 1 <= context <= config.context_length:
        raise RequestError(
            f"context is {context}: expected 1 to {config.context_length}, which this model was trained "
            "for (--context)"
        )
    return context


def check_kv_type(kv_type: str) -> str:
    """The type itself, or `RequestError`."""
    if kv_type not in KV_TYPES:
        raise RequestError(f"kv_type is {kv_type!r}: expected {', '.join(KV_TYPES)} (--kv-type)")
    return kv_type
