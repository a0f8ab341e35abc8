"""What a model's predictors do over time, on text that changes its subject."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from hotset.backends.contract import NeuronFFN
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
    pairs = zip(model.config.layers, model.transformer.layers, strict=True)
    ffns = [cast(NeuronFFN, layer.ffn) for config, layer in pairs if config.ffn]
    total = sum(map(len, tokens.values()))
    kv = model.kv_cache()
    points: list[TracePoint] = []
    done = 0
    for name, ids in tokens.items():
        for start in range(0, len(ids) - EVERY + 1, EVERY):
            if kv.capacity - kv.length < EVERY:
                kv.truncate(0)
            before = model.neuron_counts()
            for token in ids[start : start + EVERY]:
                model.transformer.forward(np.array([token], np.int32), kv)
            done += EVERY
            computed = neurons_per_token(before, model.neuron_counts())
            recalls = [ffn.recall_seen for ffn in ffns if not np.isnan(ffn.recall_seen)]
            points.append(
                TracePoint(
                    done,
                    name,
                    density(model, computed) or 0.0,
                    float(np.mean(recalls)) if recalls else float("nan"),
                    tuple(ffn.cutoff for ffn in ffns),
                )
            )
            if progress:
                progress(done, total)
    return points
