"""Model files: bytes to a `Checkpoint`. Knows nothing of how a model is computed."""

from pathlib import Path

from hotset.core.errors import CheckpointError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.gguf_model import open_gguf
from hotset.formats.huggingface import open_huggingface
from hotset.formats.locate import locate
from hotset.formats.mapped import unreadable
from hotset.formats.tensor import Tensor, TensorType

__all__ = ["Checkpoint", "Tensor", "TensorType", "locate", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file or a Hugging Face directory.

    Raises `CheckpointError`, one line, for whatever cannot be read or run.
    """
    try:
        if path.is_dir():
            return open_huggingface(path)
        if path.suffix in (".safetensors", ".json"):
            raise CheckpointError(f"{path}: name its directory instead")
        return open_gguf(path)
    except OSError as error:
        raise unreadable(path, error) from None
