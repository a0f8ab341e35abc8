"""How a model makes one vector of a text: what its files say."""

import json
from enum import Enum
from typing import Any

from hotset.core.errors import CheckpointError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.mapped import read_bytes


class Pooling(str, Enum):
    """How a text's embedding is made of its tokens' hidden vectors; in the order of llama.cpp's numbers."""

    NONE = "none"
    MEAN = "mean"
    CLS = "cls"
    """The first token's."""
    LAST = "last"
    RANK = "rank"
    """No vector: a number that says how well a text answers a question."""


KEY = "pooling_type"
FILE = "1_Pooling/config.json"
"""Where sentence-transformers says it, beside the model."""

_FLAGS = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_cls_token": Pooling.CLS,
}


def read_pooling(checkpoint: Checkpoint) -> Pooling | None:
    """A model's way; None: it says nothing, as models that were not made for it. Raises `CheckpointError`."""
    if checkpoint.path.is_dir():
        return _of_directory(checkpoint)
    key = f"{checkpoint.metadata.get('general.architecture')}.{KEY}"
    value = checkpoint.metadata.get(key)
    ways = tuple(Pooling)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < len(ways):
        raise CheckpointError(f"{checkpoint.path}: {key}: expected 0 to {len(ways) - 1}, found {value!r}")
    return ways[value]


def _of_directory(checkpoint: Checkpoint) -> Pooling | None:
    path = checkpoint.path / FILE
    if not path.is_file():
        return None
    try:
        said: Any = json.loads(read_bytes(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    found = [way for flag, way in _FLAGS.items() if isinstance(said, dict) and said.get(flag)]
    return found[0] if len(found) == 1 else Pooling.NONE
