"""What every model file is read into: a configuration, named tensors and what the tokenizer needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotset.core.config import ModelConfig
from hotset.core.errors import CheckpointError
from hotset.formats.gguf_file import split_parts
from hotset.formats.tensor import Tensor

_DIRECTORY_SUFFIXES = (".safetensors", ".json", ".model", ".jinja", ".txt")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened. Tensors are memory-mapped: bytes are read when they are used.

    Tensor names are GGUF's (``token_embd``, ``blk.N.attn_q``, ``blk.N.ffn_down`` … with ``.weight`` and
    ``.bias``), whatever the file's own names. Fused matrices (Falcon's ``attn_qkv``) are given as their parts
    ``attn_q``, ``attn_k``, ``attn_v``; norm weights stored minus one (Gemma, Nemotron in Hugging Face files)
    have it added. Where Falcon has ``attn_norm_2``, that is the attention's norm and ``attn_norm`` the FFN's;
    without it, and without ``ffn_norm``, ``attn_norm`` serves both. Without ``output``, ``token_embd`` is it.
    Vectors of delta nets have the suffix ``.weight``, too (``ssm_dt``, ``ssm_a``), and ``ssm_a`` is negative.
    """

    path: Path
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """GGUF's key-values; for a Hugging Face directory the parsed ``config.json``. Overrides are in them."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the files were read, a line each."""

    def files(self) -> list[Path]:
        """The files that the model is read from: all parts of a split one, all of a directory's own kinds."""
        if self.path.is_dir():
            return [file for file in self.path.iterdir() if file.suffix in _DIRECTORY_SUFFIXES]
        return [self.path.with_name(part) for part in split_parts(self.path.name)]


def without_predictions(count: int) -> str:
    """Say that blocks which predict further tokens have been left out."""
    return f"{count} tensors that predict several tokens at once are left out: one is computed at a time"


def refuse_mixture(checkpoint: Checkpoint, remedy: str) -> None:
    """Raise `CheckpointError` for a mixture of experts, which a command does not take yet."""
    if checkpoint.config.mixture:
        raise CheckpointError(f"{checkpoint.path}: mixtures of experts are not supported here yet: {remedy}")


def without_images(count: int) -> str:
    """Say that tensors of a multimodal model have been left out."""
    return f"{count} tensors for images and sound are left out: only the text part of the model is run"
