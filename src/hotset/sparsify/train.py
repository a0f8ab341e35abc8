"""Finds predictors for a whole model: every candidate of every layer, measured, and the best of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32, FFN
from hotset.convert.by_neuron import Predictor
from hotset.core.config import FFNPlan, Way
from hotset.formats.tensor import Tensor
from hotset.sparsify.choice import Choice, choose, measure_ms
from hotset.sparsify.predictor import Texts, activity, candidates
from hotset.sparsify.study import Stage, Study, Windows, inputs
from hotset.sparsify.trial import Quality, Trial, TrialFFN

CHOSEN = "chosen"
_JUDGED = 1024
"""Tokens by which a cut-off is set, and as many by which it is judged; each has thousands of neurons."""
_TRIED_WINDOWS = 8
"""Held-out windows in which perplexities are taken."""
_MOST_KL = 0.01
"""Nats, about 1 % of perplexity, of which each layer has an even share."""
_UNEVEN = 3
"""Layers differ: a choice alone may cost so many times a layer's share."""


@dataclass(frozen=True)
class Training:
    """What was found for a model."""

    choices: tuple[tuple[Choice, ...], ...]
    """Every candidate of each layer, timed."""
    best: tuple[Choice | None, ...]
    """Of each layer; None: its dense FFN stays."""
    dense_ms: tuple[float, ...]
    dense: Quality
    qualities: dict[str, Quality]
    """Of one kind of choice in all layers, by its name, and of the best of each layer, `CHOSEN`."""
    predictions: int
    """Held-out predictions behind the qualities."""

    @property
    def plans(self) -> list[FFNPlan | None]:
        """What to convert the model with."""
        return [choice.plan if choice else None for choice in self.best]

    def in_all_layers(self, name: str) -> list[Choice | None]:
        """The choices behind one of `qualities`."""
        return list(self.best) if name == CHOSEN else _row(self.choices, name)

    def predictors(self, study: Study) -> dict[int, Predictor]:
        """The matrices that go with the plans, neurons in the model's order."""
        return matrices(self.best, study)


def train_predictors(
    study: Study, windows: Windows, *, target: float, budget: float, stage: Stage
) -> Training:
    """Try every candidate on every layer; see `hotset.sparsify.predictor.candidates` for the numbers."""
    found, read = find_candidates(study, windows, target=target, budget=budget, stage=stage)
    timed, dense_ms = _timed(study, found, read, stage)
    with stage("Reading held-out text") as bar:
        trial = Trial(study.transformer, windows.held_out[:_TRIED_WINDOWS], bar)
    kinds = list(dict.fromkeys(choice.name for choices in timed for choice in choices))
    qualities = {}
    with stage("Trying them") as bar:
        for kind in kinds:
            row = _row(timed, kind)
            qualities[kind] = trial.run([_tried(study, i, choice) for i, choice in enumerate(row)])
            if bar:
                bar(len(qualities), len(kinds))
    # Any change re-rounds all that follows: what that costs, exact choices say.
    rounding = qualities[Way.EXACT.value].kl if Way.EXACT.value in qualities else 0.0
    most_kl = rounding + _UNEVEN * _MOST_KL / len(timed)
    best = []
    with stage("Trying the fastest") as bar:
        for i, choices in enumerate(timed):
            best.append(_harmless(study, trial, i, choices, target, dense_ms[i], most_kl))
            if bar:
                bar(i + 1, len(timed) + 1)
        qualities[CHOSEN] = trial.run([_tried(study, i, choice) for i, choice in enumerate(best)])
        if bar:
            bar(len(timed) + 1, len(timed) + 1)
    return Training(
        tuple(map(tuple, timed)), tuple(best), tuple(dense_ms), trial.dense, qualities, trial.predictions
    )


def find_candidates(
    study: Study, windows: Windows, *, target: float, budget: float, stage: Stage
) -> tuple[list[list[Choice]], list[F32]]:
    """Every candidate of each layer, trained but not timed, and what layers read of the held-out text."""
    texts = [
        inputs(study.transformer, windows.train, stage),
        _thinned(inputs(study.transformer, windows.tune, stage)),
        _thinned(inputs(study.transformer, windows.held_out, stage)),
    ]
    found: list[list[Choice]] = []
    with stage("Finding predictors") as bar:
        for i, spec in enumerate(study.specs):
            ffn = study.build(i)
            train, tune, held_out = (activity(ffn, spec, x[i]) for x in texts)
            found.append(list(candidates(spec, Texts(train, tune, held_out), target, budget)))
            if bar:
                bar(i + 1, len(study.specs))
    return found, texts[2]


def matrices(chosen: Sequence[Choice | None], study: Study) -> dict[int, Predictor]:
    """The low-rank predictors of the layers that have one, neurons in the model's order."""
    return {
        layer: (choice.fc[0].weight, _unsorted(choice.fc[1].weight, study.order[layer]))
        for layer, choice in enumerate(chosen)
        if choice and choice.fc
    }


def _thinned(layers: Sequence[F32]) -> list[F32]:
    """Tokens spread over all, as many as a cut-off needs."""
    return [np.ascontiguousarray(x[:: -(-len(x) // _JUDGED)]) for x in layers]


def _timed(
    study: Study, found: Sequence[Sequence[Choice]], x: Sequence[F32], stage: Stage
) -> tuple[list[list[Choice]], list[float]]:
    """The choices with their times, and the dense FFNs'; one kind after the other, against the dense FFN."""
    timed: list[list[Choice]] = [[] for _ in found]
    kinds = list(dict.fromkeys(choice.name for choices in found for choice in choices))
    dense = np.zeros((len(kinds), len(found)))
    ratios = np.zeros_like(dense)
    with stage("Timing") as bar:
        for k, kind in enumerate(kinds):
            ffns: list[FFN] = []
            for i, choices in enumerate(found):
                choice = _of_kind(choices, kind)
                ffns.append(study.build(i, choice.plan, choice.fc) if choice else study.dense_ffns()[i])
            dense[k], others = measure_ms(study.dense_ffns(), ffns, x)
            ratios[k] = others / dense[k]
            if bar:
                bar(k + 1, len(kinds))
    dense_ms = [float(ms) for ms in np.median(dense, axis=0)]
    for i, choices in enumerate(found):
        for choice in choices:
            ms = float(ratios[kinds.index(choice.name), i]) * dense_ms[i]
            timed[i].append(replace(choice, ms=ms))
    return timed, dense_ms


def _harmless(
    study: Study,
    trial: Trial,
    layer: int,
    choices: list[Choice],
    target: float,
    dense_ms: float,
    most_kl: float,
) -> Choice | None:
    """The fastest choice that keeps the target and, alone in the model, harms it little; else None.

    What a layer keeps of its activation does not say all: near the output, a per cent lost can cost many
    times the KL that it costs elsewhere. The choices that were tried get their `kl`.
    """
    while True:
        best = choose([c for c in choices if c.kl is None or c.kl <= most_kl], target, dense_ms)
        if best is None or best.kl is not None or not best.plan.way.approximate:
            return best
        kl = trial.run_one(layer, _tried(study, layer, best)).kl
        choices[:] = [replace(best, kl=kl) if choice is best else choice for choice in choices]


def _row(layers: Sequence[Sequence[Choice]], kind: str) -> list[Choice | None]:
    return [_of_kind(choices, kind) for choices in layers]


def _of_kind(choices: Sequence[Choice], kind: str) -> Choice | None:
    return next((choice for choice in choices if choice.name == kind), None)


def _tried(study: Study, layer: int, choice: Choice | None) -> FFN:
    if choice is None:
        return study.dense_ffns()[layer]
    spec = replace(study.specs[layer], plan=choice.plan, predictor=choice.fc)
    return TrialFFN(study.build(layer), spec)


def _unsorted(fc2: Tensor, order: NDArray[np.int64]) -> Tensor:
    """A matrix with a row for each stored neuron, in the model's order of neurons."""
    rows = fc2.data.reshape(len(order), -1)
    data = np.empty_like(rows)
    data[order] = rows
    return Tensor(fc2.name, fc2.type, fc2.shape, data.reshape(-1))
