"""Vectors of texts: requests like others, whose rows give hidden vectors and no logits."""

from typing import TYPE_CHECKING

import numpy as np

from hotset.backends.contract import F32
from hotset.core.batch import I32
from hotset.core.errors import RequestError, UnsupportedError
from hotset.formats.pooling import Pooling
from hotset.serve.job import Job
from hotset.serve.loaded import Model
from hotset.serve.stream import Stream

if TYPE_CHECKING:
    from hotset.serve.runner import Runner


def check_embeds(model: Model) -> Pooling:
    """How a model makes vectors; `UnsupportedError` where it makes none."""
    if model.pooling not in (Pooling.MEAN, Pooling.LAST):
        says = f"{model.pooling.value} pooling" if model.pooling else "no pooling (pooling_type)"
        raise UnsupportedError(
            f"{model.path.name} gives no embeddings: its file says {says}, expected mean or last; take a "
            "model that was made for them, such as Qwen3-Embedding"
        )
    if model.plan:
        raise UnsupportedError("embeddings are computed by the CPU alone: load the model without --vram")
    return model.pooling


class Embed(Job):
    """Keeps the hidden vectors that a text's own is made of."""

    def __init__(self, tokens: I32, pooling: Pooling, size: int) -> None:
        """A vector of `size` numbers."""
        # Each token counts in a mean: none may be left out because another sequence has it.
        super().__init__(tokens, len(tokens), reuse=pooling is Pooling.LAST)
        self._hidden = np.empty((1 if self.reuse else len(tokens), size), np.float32)

    def logits(self, rows: int) -> int:
        return 0

    def hidden(self, start: int, rows: int) -> F32 | None:
        if self.reuse:
            return self._hidden if start + rows == self.prompt else None
        return self._hidden[start : start + rows]

    def accept(self, logits: F32) -> bool:
        return self.slot is None or self.slot.left == 0

    @property
    def vector(self) -> F32:
        """The text's vector (D,), of length 1."""
        vector = self._hidden.mean(axis=0, dtype=np.float64)
        unit: F32 = (vector / (np.linalg.norm(vector) or 1.0)).astype(np.float32)
        return unit


class Embedding(Stream):
    """A vector that is being computed; it goes on by itself. It may be cancelled as any stream."""

    def __init__(self, job: Embed, runner: "Runner") -> None:
        super().__init__(job, runner)
        self._embed = job

    def result(self) -> F32:
        """The vector (D,), of length 1, once it is there. Raises what ended the request too early."""
        for _ in self:
            pass
        return self._vector()

    async def wait(self) -> F32:
        """The same without holding up the event loop."""
        async for _ in self:
            pass
        return self._vector()

    def _vector(self) -> F32:
        if self._embed.cancelled:
            raise RequestError("this embedding was cancelled")
        return self._embed.vector
