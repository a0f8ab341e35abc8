"""A part by itself, outside a model: for measurements and trials."""

from collections.abc import Sequence as ListOf

import numpy as np

from hotset.backends.building import Backend
from hotset.backends.contract import BatchView, StateShape
from hotset.core.batch import Batch

_HEAD = 32


def view_alone(
    backend: Backend, rows: int, cutoffs: ListOf[float | None] = (), *, lossless: bool = False
) -> BatchView:
    """A view of `rows` rows of a new sequence that one layer's attention, of one head of 32 numbers, and the
    choosers of these cut-offs belong to."""
    sequence = backend.sequence(StateShape(1, 1, _HEAD, tuple(cutoffs)), rows, "f16")
    return backend.view(Batch.of(sequence, np.zeros(rows, np.int32), lossless=lossless))
