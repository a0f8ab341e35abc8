"""Calibrates cut-offs for a whole model: every layer's levels, timed and priced, and the global search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hotset.backends.contract import F32, FFN
from hotset.sparsify.choice import F64, NEVER_SLOWER, measure_ms
from hotset.sparsify.study import Stage, Study, Windows
from hotset.sparsify.threshold import SCORES, Budget, Found, Level, levels, priced, search, timed
from hotset.sparsify.trial import Quality, Trial, TrialFFN

_TIMED_DENSITIES = (0.6, 0.3, 0.1)
_PRICED_WINDOWS = 2


@dataclass(frozen=True)
class Calibration:
    """What a search starts from: each layer's levels, and the dense model's times and held-out quality."""

    study: Study
    trial: Trial
    layers: list[list[Level]]
    dense_ms: list[float]
    inputs: list[F32]
    """What each layer reads, to time it with."""

    def search(self, budget: Budget, stage: Stage) -> Found:
        """The fastest plans within the budget, by runs on held-out text."""

        def run(chosen: Sequence[Level | None]) -> tuple[Quality, tuple[float, ...]]:
            ffns: list[FFN] = []
            for i, level in enumerate(chosen):
                if level is None:
                    ffns.append(self.study.dense_ffns()[i])
                else:
                    spec = replace(self.study.specs[i], plan=level.plan)
                    ffns.append(TrialFFN(self.study.build(i), spec))
            quality = self.trial.run(ffns)
            return quality, tuple(ffn.density if isinstance(ffn, TrialFFN) else 1.0 for ffn in ffns)

        with stage("Searching") as bar:
            found = search(self.layers, self.dense_ms, run, self.trial.dense, budget, bar)
        confirmed = self._confirmed(found.levels)
        dropped = [level is None for level in confirmed] != [level is None for level in found.levels]
        return Found(confirmed, *(run(confirmed) if dropped else (found.quality, found.densities)))

    def _confirmed(self, chosen: Sequence[Level | None]) -> tuple[Level | None, ...]:
        """The levels, timed once more by themselves; dense where one is not faster after all."""
        ffns = [
            self.study.build(i, level.plan) if level else self.study.dense_ffns()[i]
            for i, level in enumerate(chosen)
        ]
        own, others = measure_ms(self.study.dense_ffns(), ffns, self.inputs)
        return tuple(
            replace(level, ms=float(ratio * ms)) if level and ratio <= NEVER_SLOWER else None
            for level, ratio, ms in zip(chosen, others / own, self.dense_ms, strict=True)
        )


def calibrate(study: Study, windows: Windows, stage: Stage) -> Calibration:
    """Find, price and time every layer's levels: quantiles by the training windows, prices by tuning ones.

    Cut-offs come from what layers read in the windows' second halves, as decoding does.
    """
    with stage("Reading text") as bar:
        learnt = Trial(study.transformer, windows.train, bar).inputs
    with stage("Reading text to price by") as bar:
        tuning = Trial(study.transformer, windows.tune[:_PRICED_WINDOWS], bar)
    layers: list[list[Level]] = []
    with stage("Pricing cut-offs") as bar:
        for i, spec in enumerate(study.specs):
            ffn = study.build(i)
            layers.append(
                list(priced(i, levels(study.dense_ffns()[i], ffn, spec, learnt[i]), ffn, spec, tuning))
            )
            if bar:
                bar(i + 1, len(study.specs))
    with stage("Timing") as bar:
        timed_layers, dense_ms = _timed(study, layers, learnt)
    with stage("Reading held-out text") as bar:
        trial = Trial(study.transformer, windows.held_out, bar)
    return Calibration(study, trial, timed_layers, dense_ms, learnt)


def _timed(
    study: Study, layers: Sequence[Sequence[Level]], x: Sequence[np.ndarray]
) -> tuple[list[list[Level]], list[float]]:
    dense: list[F64] = []
    ratios = {}
    scores = [score for score in SCORES if any(lv.plan.score is score for found in layers for lv in found)]
    for score in scores:
        for density in _TIMED_DENSITIES:
            ffns: list[FFN] = []
            for i, found in enumerate(layers):
                level = next((lv for lv in found if (lv.plan.score, lv.density) == (score, density)), None)
                ffns.append(study.build(i, level.plan) if level else study.dense_ffns()[i])
            own, others = measure_ms(study.dense_ffns(), ffns, x)
            dense.append(own)
            ratios[score, density] = others / own
    dense_ms = np.median(dense, axis=0)
    return [
        [
            level
            for score in scores
            for level in timed(
                found,
                score,
                _TIMED_DENSITIES,
                np.array([ratios[score, d][i] for d in _TIMED_DENSITIES]) * dense_ms[i],
            )
        ]
        for i, found in enumerate(layers)
    ], [float(ms) for ms in dense_ms]
