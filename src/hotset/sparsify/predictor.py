"""Predictors of the neurons that fire: candidates for one layer, and what each of them is good for.

The *activation kept* is the share of ``|h_j| * ||down_j||``, what a neuron adds to the output, that the
chosen neurons have of the token's sum over all neurons; the mean over tokens, each counting alike, so that
the few with huge activations do not decide. (A share of the squares hides what is lost: 2 % of them are 14 %
of a vector's length.) Every predictor keeps the target, by its cut-off; what tells them apart is how many
neurons that takes and what asking costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotset.backends.blocks import round_to_nearest
from hotset.backends.contract import F32, FFN, Linear, NeuronFFNSpec
from hotset.backends.maths import normalise, predict, predictor_matrices
from hotset.core.config import FFNPlan, Score, Way
from hotset.formats.tensor import TensorType
from hotset.sparsify.choice import Choice, effective_bytes, ffn_bytes, predictor_bytes
from hotset.sparsify.low_rank import Factors, fine_tune, weighted_svd

_BLOCK = 32
_MARGIN = 0.15
"""Of what may be lost, kept back when a cut-off is set: other text is a little different."""
_PRICE = 0.2
"""Hardly matters, as the cut-off is set afterwards."""
_BINS = 1 << 17
_GAIN = 0.99
"""A larger rank must bring the bytes down to this."""


@dataclass(frozen=True)
class Activity:
    """One layer's FFN on T tokens: its normalised input (T, D), which neurons fire, what each adds (T, F)."""

    n: F32
    fires: NDArray[np.bool_]
    share: F32
    """``|h| * ||down||`` as a share of the token's sum."""


def activity(ffn: FFN, spec: NeuronFFNSpec, x: F32) -> Activity:
    """Compute every neuron of x (T, D) with `ffn`, built from `spec`."""
    shape = len(x), spec.down_t.weight.shape[0]
    gate, h = np.empty(shape, np.float32), np.empty(shape, np.float32)
    ffn.neurons(x, gate, h)
    share = np.abs(h) * np.linalg.norm(spec.down_t.weight.to_float32(), axis=1)
    share /= np.maximum(share.sum(axis=1, keepdims=True), np.float32(1e-30))
    return Activity(normalise(x, spec.norm), h != 0, share)


@dataclass(frozen=True)
class Texts:
    """A layer's activity on the tokens that weights are trained on, that set cut-offs, and that judge."""

    train: Activity
    tune: Activity
    held_out: Activity


def candidates(
    spec: NeuronFFNSpec, texts: Texts, target: float, budget: float, train: bool = True
) -> Iterator[Choice]:
    """Every way to choose the layer's neurons with cut-offs that keep `target`, cheapest first to make.

    ``spec.plan`` does not matter. `budget` is the largest low-rank predictor, as a share of the FFN's bytes;
    without `train` it stays as the SVD gives it and `torch` is not needed. Times are not measured here.
    """
    fires = float(texts.held_out.fires.mean())
    if spec.activation.zero_producing:
        yield Choice(FFNPlan(Way.EXACT), chosen=fires, read=fires)
    hidden = spec.up.weight.shape[1]
    if hidden % _BLOCK == 0:
        for score in (Score.GATE_Q4, Score.GATE_Q2):
            yield judged(with_plan(spec, score), texts, target)
    yield from _low_rank(spec, texts, target, budget, train)


def _low_rank(
    spec: NeuronFFNSpec, texts: Texts, target: float, budget: float, train: bool
) -> Iterator[Choice]:
    """The SVD at ranks that grow while it pays and the budget lasts, then trained, without and with ReLU."""
    gate = (spec.gate or spec.up).weight
    neurons, hidden = gate.shape
    per_rank = (neurons + hidden) * TensorType.Q4_0.block_bytes / TensorType.Q4_0.block_size
    most = min(int(budget * ffn_bytes(spec) / per_rank), hidden) // _BLOCK * _BLOCK
    if not most or hidden % _BLOCK:
        return
    factors = weighted_svd(gate.to_float32(), texts.train.n)
    best: Choice | None = None
    least, rank = np.inf, 0
    while rank < most:
        rank = min(max(2 * rank, _BLOCK), most)
        tried = with_plan(spec, Score.LOW_RANK, factors.first(rank))
        choice = judged(tried, texts, target)
        cost = effective_bytes(tried, choice.chosen, choice.read)
        if cost > least * _GAIN:
            break
        best, least = choice, cost
    if best is None:
        return
    rank = best.fc[0].weight.shape[0]
    if not train:
        yield best
        return
    for start, score in (
        (factors.first(rank), Score.LOW_RANK),
        (factors.first(rank // 2).rectified(), Score.LOW_RANK_RELU),
    ):
        trained = fine_tune(
            start,
            texts.train.n,
            texts.train.share,
            rectified=score is Score.LOW_RANK_RELU,
            price=_PRICE,
        )
        choice = judged(with_plan(spec, score, trained), texts, target)
        # Little data can do harm: what is not better than the SVD is not kept.
        yield best if score is Score.LOW_RANK and best.chosen <= choice.chosen else choice


def judged(spec: NeuronFFNSpec, texts: Texts, target: float) -> Choice:
    """A predictor with the cut-off that keeps the target, on the tuning and on the held-out tokens."""
    matrices = predictor_matrices(spec)
    rectified = spec.plan.score is Score.LOW_RANK_RELU
    scores = predict(matrices, texts.held_out.n, rectified)
    cutoff = min(
        cutoff_for(
            predict(matrices, texts.tune.n, rectified), texts.tune.share, target + _MARGIN * (1 - target)
        ),
        cutoff_for(scores, texts.held_out.share, target),
    )
    chosen = scores >= np.float32(cutoff)
    fires, share = texts.held_out.fires, texts.held_out.share
    hit = chosen & fires
    recall = _ratio(hit, fires)
    return Choice(
        replace(spec.plan, cutoff=cutoff, kept=target if spec.activation.zero_producing else 0.0),
        spec.predictor,
        predictor_bytes(spec),
        recall=recall,
        precision=_ratio(hit, chosen),
        kept=float((share * chosen).sum(dtype=np.float64) / share.sum(dtype=np.float64)),
        chosen=float(chosen.mean()),
        read=float((hit if spec.activation.zero_producing else chosen).mean()),
    )


def cutoff_for(scores: F32, share: F32, target: float) -> float:
    """The highest cut-off whose neurons have `target` of the shares' sum, within 1e-5 of the scores' range.

    By a histogram: sorting millions of scores would be most of the work of finding predictors.
    """
    low = float(scores.min())
    step = max((float(scores.max()) - low) / _BINS, 1e-30)
    bins = ((scores - np.float32(low)) / np.float32(step)).astype(np.int32).reshape(-1)
    above = np.cumsum(np.bincount(bins, share.reshape(-1))[::-1])
    last = len(above) - 1 - int(np.searchsorted(above, target * above[-1]))
    return low + (last - 0.5) * step  # half a step for rounding


def with_plan(spec: NeuronFFNSpec, score: Score, factors: Factors | None = None) -> NeuronFFNSpec:
    """The spec with a predictor in place of its plan; factors as they are stored, in Q4_0."""
    named = {"fc1": factors.fc1, "fc2": factors.fc2} if factors else {}
    fc = tuple(Linear(round_to_nearest(name, w, TensorType.Q4_0)) for name, w in named.items())
    return replace(spec, plan=FFNPlan(Way.PREDICTOR, score), predictor=fc)


def _ratio(part: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    total = int(np.count_nonzero(of))
    return int(np.count_nonzero(part)) / total if total else 1.0
