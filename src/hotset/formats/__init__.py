"""Model files: bytes to a `Checkpoint`. Knows nothing of how a model is computed."""

from pathlib import Path

from hotset.core.errors import CheckpointError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.gguf_model import open_gguf
from hotset.formats.huggingface import open_huggingface
from hotset.formats.locate import locate
from hotset.formats.mapped import unreadable
from hotset.formats.overrides import Overrides
from hotset.formats.tensor import Tensor, TensorType

__all__ = ["Checkpoint", "Overrides", "Tensor", "TensorType", "locate", "open_checkpoint"]


def open_checkpoint(path: Path, overrides: Overrides | None = None) -> Checkpoint:
    """Open a GGUF file or a Hugging Face directory, these `overrides` in place of its metadata.

    Raises `CheckpointError`, one line, for whatever cannot be read or run, and `RequestError` for an override
    that cannot be made.
    """
    overrides = overrides or {}
    try:
        if path.is_dir():
            return open_huggingface(path, overrides)
        if path.suffix in (".safetensors", ".json"):
            raise CheckpointError(f"{path}: name its directory instead")
        return open_gguf(path, overrides)
    except OSError as error:
        raise unreadable(path, error) from None
