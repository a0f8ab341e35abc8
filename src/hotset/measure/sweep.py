"""Decode speed against density: what leaving out neurons brings on this machine, for this model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hotset.activations.capture import capture
from hotset.backends.contract import F32
from hotset.backends.maths import ACTIVATIONS
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import RequestError
from hotset.measure.speed import density, neurons_per_token, sample_tokens
from hotset.serve.loaded import Model

PLAN = FFNPlan(Way.THRESHOLD, Score.GATE)
"""What the model must be loaded with: its cut-off can be set so that any share of the neurons is computed."""

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TOKENS = 48
_SCORED = 192


@dataclass(frozen=True)
class SweepPoint:
    """One density; a GB is 10^9 bytes."""

    density: float
    """Share of neurons computed, as counted."""
    decode_tokens_per_second: float
    gb_per_token: float
    """Weights that one token reads."""
    roofline_tokens_per_second: float
    """What the memory's bandwidth allows for these bytes."""


def sweep(
    model: Model,
    densities: Sequence[float] = DENSITIES,
    progress: Callable[[int, int], None] | None = None,
) -> list[SweepPoint]:
    """Decode a built-in text with cut-offs at quantiles of its own scores: (1 - density) of each layer's.

    Where a zero-producing activation makes more than that share of the scores zero, a density cannot be had:
    it is left out, and the last one is the model's own. Raises `RequestError` for a model that is not stored
    by neuron.
    """
    chosen = [i for i, layer in enumerate(model.config.layers) if layer.ffn]
    if not chosen:
        raise RequestError(f"{model.path} is not stored by neuron: convert it first (hotset convert)")
    count = min(_SCORED, model.config.context_length)
    ids = sample_tokens(model, count)
    cutoffs = np.zeros((model.config.n_layers, len(densities)), np.float32)
    activation = ACTIVATIONS[model.config.activation]

    def observe(layer: int, x: F32, gate: F32, h: F32) -> None:
        # A median over the tokens keeps those out on which everything fires.
        scores = np.quantile(np.abs(activation(gate)), 1 - np.array(densities), axis=1)
        cutoffs[layer] = np.median(scores, axis=1)

    capture(model.transformer, [ids], observe, skip=min(4, count - 1))
    sequence = model.sequence(count)
    measured: list[tuple[float, float, float]] = []
    bandwidths = []
    for step, wanted in enumerate(densities):
        if wanted < 1 and not all(cutoffs[i, step] > 0 for i in chosen):
            continue
        sequence.rewind(0)
        model.transformer.forward(Batch.of(sequence, ids[:16], lossless=True))
        for i, chooser in enumerate(sequence.choosers):
            if chooser:
                chooser.cutoff = float(cutoffs[i, step]) if wanted < 1 else 0.0
        model.transformer.forward(Batch.of(sequence, ids[16:17]))
        before = model.work(sequence)
        start = time.perf_counter()
        for i in range(17, min(17 + _TOKENS, count)):
            model.transformer.forward(Batch.of(sequence, ids[i : i + 1]))
        seconds = time.perf_counter() - start
        computed = neurons_per_token(before, model.work(sequence))
        gigabytes = model.traffic.bytes_per_token(computed) / 1e9
        speed = (min(17 + _TOKENS, count) - 17) / seconds
        measured.append((density(model, computed) or 0.0, speed, gigabytes))
        # What decoding itself reads the memory gives, too.
        bandwidths += [model.backend.memory_bandwidth(int(gigabytes * 1e9)), speed * gigabytes]
        if progress:
            progress(step + 1, len(densities))
    return [SweepPoint(*point, max(bandwidths) / point[-1]) for point in measured]
