"""What a model's predictors do over time, on text that changes its subject."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from hotset.core.batch import Batch, Work
from hotset.core.errors import RequestError
from hotset.measure.speed import density, neurons_per_token
from hotset.serve.loaded import Model

EVERY = 16
"""Tokens between two points, at least; a multiple of it where there would be more than `_POINTS`."""
_POINTS = 128


@dataclass(frozen=True)
class TracePoint:
    """One stretch of decoding."""

    tokens: int
    """Decoded so far."""
    subject: str
    density: float
    """Share of neurons computed in this stretch, where the model chose them: not at first positions."""
    kept: float
    """Share of the activation kept, the mean of this stretch's audits in all layers; NaN without any."""
    cutoffs: tuple[float, ...]
    """Of each layer that chooses its neurons, at the end of the stretch."""


def trace(
    model: Model,
    texts: Iterable[tuple[str, str]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[TracePoint]:
    """Decode texts, each behind its subject's name, one after the other, as one conversation.

    Where the model's context ends another conversation begins. Raises `RequestError` for a model that
    computes all its neurons, or texts of less than a stretch.
    """
    if not model.chooses_neurons:
        raise RequestError(f"{model.path} computes all its neurons: there is nothing to trace")
    tokens = [(name, model.tokenizer.encode(text, parse_special=False)) for name, text in texts]
    for name, ids in tokens:
        if len(ids) < EVERY:
            raise RequestError(f"{name}: {len(ids)} tokens of text: expected at least {EVERY}")
    lengths = [len(ids) for _, ids in tokens]
    total = sum(lengths)
    sequence = model.sequence(min(total, model.config.context_length))
    choosers = [chooser for chooser in sequence.choosers if chooser]
    every = min(EVERY * -(-total // (EVERY * _POINTS)), *lengths, sequence.capacity)
    points: list[TracePoint] = []
    done = 0
    for name, ids in tokens:
        for start in range(0, len(ids) - every + 1, every):
            if sequence.capacity - sequence.length < every:
                sequence.rewind(0)
            before = model.work(sequence)
            for token in ids[start : start + every]:
                model.transformer.forward(Batch.of(sequence, np.array([token], np.int32)))
            done += every
            after = model.work(sequence)
            points.append(
                TracePoint(
                    done,
                    name,
                    density(model, neurons_per_token(before, after)) or 0.0,
                    _kept(before, after),
                    tuple(chooser.cutoff for chooser in choosers),
                )
            )
            if progress:
                progress(done, total)
    return points


def _kept(before: list[Work | None], after: list[Work | None]) -> float:
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a and b]
    audits = sum(b.audits - a.audits for a, b in pairs)
    return sum(b.kept - a.kept for a, b in pairs) / audits if audits else float("nan")
