"""Cut-offs: budgets as they are written, levels, and a search that stays within what was allowed."""

from dataclasses import replace

import numpy as np
import pytest

from hotset.backends.contract import Linear, NeuronFFNSpec, Norm
from hotset.backends.reference.ffn import ReferenceNeuronFFN
from hotset.core.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.core.errors import RequestError
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array
from hotset.sparsify.threshold import Budget, Level, best_levels, levels, search, timed
from hotset.sparsify.trial import Quality, TrialFFN

DENSE = Quality(10.0, 0.0)


@pytest.mark.parametrize(
    ("text", "kind", "amount"), [("ppl=1%", "ppl", 0.01), ("ppl=2.5%", "ppl", 0.025), ("kl=0.01", "kl", 0.01)]
)
def test_budgets(text, kind, amount):
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount) == (kind, pytest.approx(amount))


@pytest.mark.parametrize(
    "text",
    ["", "1%", "ppl=", "ppl=0.01", "ppl=-1%", "ppl=0%", "ppl=nan%", "ppl=200%", "kl=1%", "kl=inf", "x=1"],
)
def test_what_is_no_budget(text):
    with pytest.raises(RequestError, match=r"budget is .*expected ppl=1%"):
        Budget.parse(text)


def test_a_perplexity_budget_holds_the_divergence_too():
    budget = Budget.parse("ppl=1%")
    assert budget.allows(Quality(10.09, 0.009), DENSE)
    assert not budget.allows(Quality(10.11, 0.009), DENSE)
    assert not budget.allows(Quality(9.9, 0.02), DENSE)  # better by luck, but far from the dense model
    assert Budget.parse("kl=0.03").allows(Quality(11.0, 0.02), DENSE)


def layer(activation=Activation.SILU):
    rng = np.random.default_rng(0)
    gate, up, down_t = (
        Linear(Tensor("w", TensorType.F16, (48, 32), half.reshape(-1).view(np.uint8)))
        for half in (rng.standard_normal((3, 48, 32)) / 4).astype(np.float16)
    )
    norm = Norm(NormKind.RMS, 1e-5, np.ones(32, np.float32))
    spec = NeuronFFNSpec(norm, gate, up, down_t, activation, FFNPlan(Way.DENSE))
    return spec, ReferenceNeuronFFN(spec), rng.standard_normal((100, 32)).astype(np.float32)


def test_levels_are_quantiles_and_their_errors_are_what_is_lost():
    spec, ffn, x = layer()
    found = levels(ffn, ffn, spec, x)
    assert len(found) == 18
    for level in found:
        tried = TrialFFN(ffn, replace(spec, plan=level.plan))
        lost, whole = x.copy(), x.copy()
        tried.forward(x, lost)
        TrialFFN(ffn, spec).forward(x, whole)
        assert tried.density == pytest.approx(level.density, abs=0.01)
        error = (np.square(lost - whole).sum(axis=1) / np.square(whole).sum(axis=1)).mean()
        assert error == pytest.approx(level.error, rel=1e-3)
    for score in (Score.GATE, Score.DOWN):
        errors = [level.error for level in found if level.plan.score is score]
        assert errors == sorted(errors)
    down, gate = (
        sum(level.error for level in found if level.plan.score is s) for s in (Score.DOWN, Score.GATE)
    )
    assert down < gate  # it knows more
    unread = replace(spec, up=Linear(tensor_from_array("up", spec.up.weight.to_float32())))
    assert {level.plan.score for level in levels(ffn, ffn, unread, x)} == {Score.DOWN}


def test_times_are_a_line_through_the_measured_ones():
    found = [Level(FFNPlan(Way.THRESHOLD, Score.DOWN), density, 0.0) for density in (0.8, 0.4)]

    def times(densities, ms):
        return [level.ms for level in timed(found, Score.DOWN, densities, np.array(ms))]

    assert times((0.6, 0.2), [0.9, 0.5]) == pytest.approx([1.1, 0.7])
    assert times((0.9, 0.6), [0.9, 0.6]) == pytest.approx(
        [0.8, 0.6]
    )  # less work than was measured: no promise
    assert times((0.6, 0.2), [0.5, 0.9]) == pytest.approx([0.7, 0.7])  # noise: less work takes no longer
    assert timed(found, Score.GATE, (0.6, 0.2), np.array([0.9, 0.5])) == []


def ladder(price, ms=1.0):
    """Levels of a layer: each tenth skipped saves a twentieth and costs by its square."""
    return [
        Level(
            FFNPlan(Way.THRESHOLD, Score.DOWN, density),
            density,
            0.0,
            kl=price * (1 - density) ** 2,
            ms=ms * (0.5 + 0.5 * density),
        )
        for density in np.linspace(0.9, 0.1, 9)
    ]


def runner(calls):
    def run(chosen):
        calls.append(chosen)
        kl = sum(level.kl for level in chosen if level)
        densities = tuple(level.density if level else 1.0 for level in chosen)
        return Quality(10 * np.exp(1.1 * kl), kl), densities

    return run


@pytest.mark.parametrize("text", ["ppl=0.5%", "ppl=1%", "ppl=5%", "kl=0.02"])
def test_search_spends_the_budget_and_no_more(text):
    budget = Budget.parse(text)
    prices = [0.001, 0.01, 0.05, 0.2]
    layers, calls = [ladder(price) for price in prices], []
    found = search(layers, [1.0] * 4, runner(calls), DENSE, budget)
    assert budget.allows(found.quality, DENSE)
    assert found.quality.kl > 0.3 * budget.nats
    assert len(calls) <= 8
    assert list(found.densities) == sorted(found.densities)  # least is skipped where it costs most
    assert found.ms([1.0] * 4) < 4
    assert [plan.cutoff if plan else 1.0 for plan in found.plans] == pytest.approx(list(found.densities))


def test_a_layer_that_is_not_faster_stays_dense():
    slow, fast = ladder(0.0, ms=1.9), ladder(0.0)
    assert best_levels([slow], [0.98], 0.0) == [None]
    found = search([slow, fast], [0.98, 1.0], runner([]), DENSE, Budget.parse("ppl=1%"))
    assert found.plans[0] is None
    assert found.densities == pytest.approx((1.0, 0.1))


def test_where_nothing_fits_all_is_dense():
    def ruined(chosen):
        return Quality(1e3, 5.0), (0.5,)

    found = search([ladder(0.001)], [1.0], ruined, DENSE, Budget.parse("ppl=1%"))
    assert found.plans == [None]
    assert found.quality == DENSE
