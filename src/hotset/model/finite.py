"""Numbers that are not finite: found in what a model predicts, then traced to where they began."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hotset.backends.contract import F32
from hotset.core.batch import Batch, Sequence
from hotset.core.errors import ModelError

if TYPE_CHECKING:
    from hotset.model.transformer import Transformer

_KV = "try --kv-type f32, as keys or values may be too large for another type"
_DAMAGED = "the model's file is damaged: get it again"
_OVERFLOW = "its numbers overflow: try another quantisation of the model"


class NotFiniteError(ModelError):
    """A model that computes infinities or NaN: a damaged weight, or numbers too large for their type."""

    def __init__(self, message: str, sequence: Sequence | None = None) -> None:
        super().__init__(message)
        self.sequence = sequence
        """In whose rows they began, where that is known; nothing is appended to it."""


def is_finite(values: Any) -> bool:
    """Whether all numbers of an array in main memory are finite; true for arrays that are elsewhere."""
    if not isinstance(values, np.ndarray):
        return True
    # NaN is the largest and the smallest number of an array that has one.
    return not values.size or (math.isfinite(values.max()) and math.isfinite(values.min()))


def not_finite(batch: Batch) -> NotFiniteError:
    """The error where it is not known in which part the numbers began."""
    return NotFiniteError(f"the model computes numbers that are not finite: {_KV}", batch.spans[0].sequence)


def traced(transformer: "Transformer", batch: Batch) -> NotFiniteError:
    """The error for a batch of at most `SLICE` rows, which is computed again, part by part.

    Tells the first part with such numbers and their first token, and whether the part's weights are to blame:
    on a vector of ordinary numbers, they give such numbers only if they are damaged.
    """
    backend, parallel = transformer.backend, transformer.config.parallel
    ordinary: F32 = np.random.default_rng(0).standard_normal((1, transformer.config.hidden_size), np.float32)
    alone = backend.view(Batch.of(transformer.sequence(1, "f32"), batch.tokens[:1], lossless=True))
    view = backend.view(batch)
    x = transformer.embedding.forward(batch.tokens, batch.positions)
    if not is_finite(x):
        return _error("the token embedding", batch, x, _DAMAGED)
    e = transformer.inputs.forward(batch.tokens, x) if transformer.inputs else None
    for i, layer in enumerate(transformer.layers):
        out = backend.copy(x) if parallel else x
        for name, part, otherwise in (
            (f"attention of layer {i}", layer.mixer, _KV),
            (f"FFN of layer {i}", layer.ffn, _OVERFLOW),
        ):
            part.forward(x, out, view)
            if not is_finite(out):
                tried = np.zeros_like(ordinary)
                part.forward(ordinary, tried, alone)
                return _error(f"the {name}", batch, out, otherwise if is_finite(tried) else _DAMAGED)
        if layer.own_input and e is not None:
            layer.own_input.forward(out, e[:, i], out)
        if layer.scale != 1:
            out *= layer.scale
        if not is_finite(out):
            return _error(f"the end of layer {i}", batch, out, _OVERFLOW)
        x = out
    rows = transformer.head.forward(x)
    return _error(
        "the head", batch, rows, _OVERFLOW if is_finite(transformer.head.forward(ordinary)) else _DAMAGED
    )


def _error(where: str, batch: Batch, values: F32, remedy: str) -> NotFiniteError:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    row = int(bad[0]) if len(bad) else 0
    sequence = next(span.sequence for span, rows in batch.rows() if rows.start <= row < rows.stop)
    return NotFiniteError(
        f"the model computes numbers that are not finite, first in {where}, at token {batch.tokens[row]} "
        f"(position {batch.positions[row]}): {remedy}",
        sequence,
    )
