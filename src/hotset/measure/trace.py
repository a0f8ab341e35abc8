"""What a model's predictors do over time, on text that changes its subject."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hotset.core.batch import Batch
from hotset.core.errors import RequestError
from hotset.measure.speed import density, neurons_per_token
from hotset.serve.loaded import Model

EVERY = 16
"""Tokens between two points."""


@dataclass(frozen=True)
class TracePoint:
    """One stretch of decoding."""

    tokens: int
    """Decoded so far."""
    subject: str
    density: float
    """Share of neurons computed in this stretch, where the model chose them: not at first positions."""
    recall: float
    """Of the neurons that fire, the share predicted: running mean of the audits, over layers; NaN before."""
    cutoffs: tuple[float, ...]
    """Of each layer that chooses its neurons, at the end of the stretch."""


def trace(
    model: Model,
    texts: Mapping[str, str],
    *,
    limit: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> list[TracePoint]:
    """Decode texts, by subject, one after the other, at most `limit` tokens each.

    Raises `RequestError` for a model that computes all its neurons, or texts of less than a stretch.
    """
    if not model.chooses_neurons:
        raise RequestError(f"{model.path} computes all its neurons: there is nothing to trace")
    tokens = {name: model.tokenizer.encode(text, parse_special=False)[:limit] for name, text in texts.items()}
    for name, ids in tokens.items():
        if len(ids) < EVERY:
            raise RequestError(f"{name}: {len(ids)} tokens of text: expected at least {EVERY}")
    total = sum(map(len, tokens.values()))
    sequence = model.sequence()
    choosers = [chooser for chooser in sequence.choosers if chooser]
    points: list[TracePoint] = []
    done = 0
    for name, ids in tokens.items():
        for start in range(0, len(ids) - EVERY + 1, EVERY):
            if sequence.capacity - sequence.length < EVERY:
                sequence.rewind(0)
            before = model.work(sequence)
            for token in ids[start : start + EVERY]:
                model.transformer.forward(Batch.of(sequence, np.array([token], np.int32)))
            done += EVERY
            computed = neurons_per_token(before, model.work(sequence))
            recalls = [c.recall_seen for c in choosers if not np.isnan(c.recall_seen)]
            points.append(
                TracePoint(
                    done,
                    name,
                    density(model, computed) or 0.0,
                    float(np.mean(recalls)) if recalls else float("nan"),
                    tuple(c.cutoff for c in choosers),
                )
            )
            if progress:
                progress(done, total)
    return points
