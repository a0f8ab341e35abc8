"""Cut-offs for models whose neurons are never quite zero (SiLU, GELU), within a budget of quality.

What a layer loses at a cut-off is proxied by the squared error of what its FFN adds, relative to the hidden
vector; how much such an error matters is measured layer by layer, as the KL divergence of the running model
with that layer alone cut off. Small losses add up, so that a global search has one number to find: the price
of KL in milliseconds. It is found on held-out text by really running the model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hotset.backends.blocks import NEURON_TYPES
from hotset.backends.contract import F32, FFN, NeuronFFNSpec
from hotset.backends.maths import ACTIVATIONS, normalise
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import RequestError
from hotset.sparsify.choice import F64, NEVER_SLOWER
from hotset.sparsify.trial import Quality, Trial, TrialFFN

SCORES = (Score.DOWN, Score.GATE)
_DENSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_PROBE = {Score.DOWN: 0.4, Score.GATE: 0.7}
"""Density at which a layer's sensitivity is measured."""
_SAMPLE = 128
"""Tokens for a layer's errors."""
_STEPS = 8
"""Runs of the global search."""


@dataclass(frozen=True)
class Budget:
    """How much quality may be lost: in ``ppl``, a share of the perplexity, or in ``kl``, nats."""

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read ``ppl=1%`` or ``kl=0.01``; `RequestError` for anything else."""
        kind, _, number = text.partition("=")
        try:
            amount = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
        except ValueError:
            amount = math.nan
        percent = number.endswith("%")
        if kind not in ("ppl", "kl") or percent != (kind == "ppl") or not 0 < amount <= 1:
            raise RequestError(
                f"budget is {text!r}: expected ppl=1% (up to 100%) or kl=0.01 (up to 1 nat) (--budget)"
            )
        return cls(kind, amount)

    @property
    def nats(self) -> float:
        """The KL divergence that it allows."""
        return math.log1p(self.amount) if self.kind == "ppl" else self.amount

    def allows(self, quality: Quality, dense: Quality) -> bool:
        """Whether a run is within the budget.

        For a perplexity, its KL must be too: it says the same of a well-calibrated model, with less noise.
        """
        if self.kind == "ppl" and quality.perplexity > dense.perplexity * (1 + self.amount):
            return False
        return quality.kl <= self.nats


@dataclass(frozen=True)
class Level:
    """A cut-off for one layer."""

    plan: FFNPlan
    density: float
    """Share of the neurons whose row of down is read."""
    error: float
    """Squared error of what leaves the FFN, over its squared length; mean over tokens."""
    kl: float = 0.0
    """What it is thought to cost the model, in nats."""
    ms: float = 0.0


def levels(dense: FFN, ffn: FFN, spec: NeuronFFNSpec, x: F32) -> list[Level]:
    """Cut-offs of a layer on every score, from quantiles over tokens x (T, D) that its FFN reads.

    `dense` is the model's own FFN, `ffn` and `spec` the same stored by neuron. A score that needs rows of a
    type that cannot be read by neuron is left out.
    """
    x = np.ascontiguousarray(x[:: max(1, len(x) // _SAMPLE)])
    down = spec.down_t.weight.to_float32()
    gate = np.empty((len(x), len(down)), np.float32)
    h = np.empty_like(gate)
    ffn.neurons(x, gate, h)
    expected = x.copy()
    dense.forward(x, expected, None)
    length = np.square(expected).sum(axis=1)
    found = []
    by_row = spec.gate is not None and spec.up.weight.type in NEURON_TYPES
    for score in SCORES if by_row else SCORES[:1]:
        if score is Score.DOWN:
            values = np.abs(h) * np.linalg.norm(down, axis=1)
        else:
            values = np.abs(ACTIVATIONS[spec.activation](gate))
        for density in _DENSITIES:
            cutoff = float(np.quantile(values, 1 - density))
            added = np.where(values >= np.float32(cutoff), h, np.float32(0)) @ down
            if spec.down_t.bias is not None:
                added += spec.down_t.bias
            found_there = x + (normalise(added, spec.post_norm) if spec.post_norm else added)
            error = float((np.square(found_there - expected).sum(axis=1) / length).mean())
            found.append(Level(FFNPlan(Way.THRESHOLD, score, cutoff), density, error))
    return found


def priced(
    layer: int, found: Sequence[Level], ffn: FFN, spec: NeuronFFNSpec, trial: Trial
) -> Iterator[Level]:
    """The layer's levels with the KL that they are thought to cost, after one real run for each score."""
    down = spec.down_t.weight.to_float32()
    for score in SCORES:
        own = [level for level in found if level.plan.score is score]
        if not own:
            continue
        probe = min(own, key=lambda level: abs(level.density - _PROBE[score]))
        quality = trial.run_one(layer, TrialFFN(ffn, replace(spec, plan=probe.plan), down))
        for level in own:
            yield replace(level, kl=quality.kl * level.error / max(probe.error, 1e-30))


def timed(found: Sequence[Level], score: Score, densities: Sequence[float], ms: F64) -> list[Level]:
    """Levels of one score with times, from a straight line through times measured at some densities."""
    slope, start = np.polyfit(densities, ms, 1)
    slope = max(slope, 0.0)
    start = float(np.mean(ms) - slope * np.mean(densities))
    least = float(np.min(ms))  # beyond what was measured, a line through noise promises too much
    return [
        replace(level, ms=max(start + slope * level.density, least))
        for level in found
        if level.plan.score is score
    ]


def best_levels(
    layers: Sequence[Sequence[Level]], dense_ms: Sequence[float], price: float
) -> list[Level | None]:
    """For each layer the level of least ``ms + price * kl``; None for dense, unless clearly slower."""
    best: list[Level | None] = []
    for found, dense in zip(layers, dense_ms, strict=True):
        faster = [level for level in found if level.ms <= NEVER_SLOWER * dense]
        level = min(faster, key=lambda level: level.ms + price * level.kl, default=None)
        best.append(level if level and level.ms + price * level.kl < dense else None)
    return best


@dataclass(frozen=True)
class Found:
    """Cut-offs within the budget: a level for each layer (None: dense), and what they do to the model."""

    levels: tuple[Level | None, ...]
    quality: Quality
    densities: tuple[float, ...]
    """Of each layer on held-out text; 1 where it is dense."""

    @property
    def plans(self) -> list[FFNPlan | None]:
        """What to convert the model with."""
        return [level.plan if level else None for level in self.levels]

    def ms(self, dense_ms: Sequence[float]) -> float:
        """Of all FFNs for one token."""
        return _ms(self.levels, dense_ms)


def search(
    layers: Sequence[Sequence[Level]],
    dense_ms: Sequence[float],
    run: Callable[[Sequence[Level | None]], tuple[Quality, tuple[float, ...]]],
    dense: Quality,
    budget: Budget,
    done: Callable[[int, int], None] | None = None,
) -> Found:
    """The fastest levels that `run`, on held-out text, finds within the budget.

    Bisection on the KL that the levels are thought to cost together, from far too much to next to nothing.
    `run` gives the quality and the density of each layer. Where nothing pays, all layers are dense.
    """
    none = (None,) * len(layers)
    best = Found(none, dense, (1.0,) * len(layers))
    low, high = budget.nats / 32, min(8 * budget.nats, _spent(best_levels(layers, dense_ms, 0.0)))
    fits: dict[tuple[Level | None, ...], bool] = {none: True}
    for step in range(_STEPS):
        spend = math.sqrt(low * high) if step else high
        chosen = tuple(_spending(layers, dense_ms, spend))
        if chosen not in fits:
            quality, densities = run(chosen)
            fits[chosen] = budget.allows(quality, dense)
            if fits[chosen] and _ms(chosen, dense_ms) < _ms(best.levels, dense_ms):
                best = Found(chosen, quality, densities)
        if done:
            done(step + 1, _STEPS)
        if spend == high and fits[chosen]:
            break
        low, high = (spend, high) if fits[chosen] else (low, spend)
    return best


def _spending(
    layers: Sequence[Sequence[Level]], dense_ms: Sequence[float], nats: float
) -> list[Level | None]:
    """The fastest levels that are thought to cost so much KL together."""
    low, high = 1e-9, 1e12
    for _ in range(60):
        middle = math.sqrt(low * high)
        spent = _spent(best_levels(layers, dense_ms, middle))
        low, high = (middle, high) if spent > nats else (low, middle)
    return best_levels(layers, dense_ms, high)


def _spent(chosen: Sequence[Level | None]) -> float:
    return sum(level.kl for level in chosen if level)


def _ms(chosen: Sequence[Level | None], dense_ms: Sequence[float]) -> float:
    return sum(level.ms if level else ms for level, ms in zip(chosen, dense_ms, strict=True))
