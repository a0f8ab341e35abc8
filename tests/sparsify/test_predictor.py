"""Predictors of one layer against their definitions, on activity that is made up or of a tiny model."""

import builtins
from dataclasses import replace

import numpy as np
import pytest

from hotset.backends.contract import Linear, NeuronFFNSpec, Norm
from hotset.backends.maths import chosen_neurons, predictor_matrices
from hotset.backends.reference.ffn import ReferenceNeuronFFN
from hotset.core.config import Activation, FFNPlan, NormKind, Score, Way
from hotset.core.errors import HotsetError
from hotset.formats.tensor import TensorType, tensor_from_array
from hotset.sparsify.choice import GATHERED, Choice, choose, effective_bytes, ffn_bytes, predictor_bytes
from hotset.sparsify.low_rank import Factors, fine_tune, weighted_svd
from hotset.sparsify.predictor import Texts, activity, candidates, cutoff_for, judged, with_plan

HIDDEN, FFN, RANK = 64, 96, 8


def linear(name, values):
    return Linear(tensor_from_array(name, np.asarray(values, np.float32)))


def make(activation=Activation.RELU, rank=RANK, gated=True, seed=0):
    """A layer whose gate has a low rank."""
    rng = np.random.default_rng(seed)
    gate = rng.standard_normal((FFN, rank)) @ rng.standard_normal((rank, HIDDEN)) / rank
    up, down_t = rng.standard_normal((2, FFN, HIDDEN)) / 8
    norm = Norm(NormKind.RMS, 1e-5, np.ones(HIDDEN, np.float32))
    gate_linear = linear("gate", gate)
    spec = NeuronFFNSpec(
        norm,
        gate_linear if gated else None,
        linear("up", up) if gated else gate_linear,
        linear("down_t", down_t),
        activation,
        FFNPlan(Way.DENSE),
    )
    return spec, ReferenceNeuronFFN(spec)


def texts(spec, ffn, tokens=600, even=False):
    rng = np.random.default_rng(1)
    mix = np.eye(HIDDEN) if even else rng.standard_normal((HIDDEN, HIDDEN))
    parts = [(rng.standard_normal((tokens, HIDDEN)) @ mix).astype(np.float32) for _ in range(3)]
    return Texts(*(activity(ffn, spec, x) for x in parts))


def test_svd_of_a_gate_of_low_rank_finds_every_neuron():
    spec, ffn = make()
    found = texts(spec, ffn)
    gate = spec.gate.weight.to_float32()
    factors = weighted_svd(gate, found.train.n).first(RANK)
    scores = found.held_out.n @ factors.fc1.T @ factors.fc2.T
    assert np.abs(scores - found.held_out.n @ gate.T).max() < 1e-4
    assert ((scores > 1e-4) <= found.held_out.fires).all()
    assert (found.held_out.fires <= (scores > -1e-4)).all()  # recall 1


def test_svd_is_the_best_of_its_rank_for_the_inputs_that_come():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((40, 24)).astype(np.float32)
    n = (rng.standard_normal((500, 24)) * np.geomspace(1, 100, 24)).astype(np.float32)
    factors = weighted_svd(weight, n).first(6)
    error = np.square(n @ weight.T - n @ factors.fc1.T @ factors.fc2.T).sum()
    values = np.linalg.svd(n @ weight.T, compute_uv=False)
    assert error == pytest.approx(np.square(values[6:]).sum(), rel=0.02)


def test_rectified_factors_are_the_same_function():
    rng = np.random.default_rng(4)
    factors = Factors(*(rng.standard_normal(shape).astype(np.float32) for shape in ((8, 16), (20, 8))))
    n = rng.standard_normal((5, 16)).astype(np.float32)
    twice = factors.rectified()
    assert twice.fc1.shape == (16, 16)
    expected = n @ factors.fc1.T @ factors.fc2.T
    assert np.maximum(n @ twice.fc1.T, 0) @ twice.fc2.T == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.98])
def test_cutoff_keeps_the_target_and_hardly_more(target):
    rng = np.random.default_rng(5)
    scores, share = rng.standard_normal((2, 200, 50)).astype(np.float32)
    share = np.square(share)
    cutoff = np.float32(cutoff_for(scores, share, target))
    assert (share * (scores >= cutoff)).sum() >= target * share.sum() * (1 - 1e-6)
    assert (share * (scores > cutoff + 2e-5 * np.ptp(scores))).sum() < target * share.sum()


def test_activity_is_what_neurons_add():
    spec, ffn = make(Activation.SILU)
    x = np.random.default_rng(6).standard_normal((7, HIDDEN)).astype(np.float32)
    gate, h = np.empty((2, 7, FFN), np.float32)
    ffn.neurons(x, gate, h)
    adds = np.linalg.norm(h[:, :, None] * spec.down_t.weight.to_float32(), axis=2)
    found = activity(ffn, spec, x)
    assert found.share == pytest.approx(adds / adds.sum(axis=1, keepdims=True), rel=1e-4)
    assert found.fires.all()


def test_every_candidate_keeps_the_target_and_counts_its_bytes():
    spec, ffn = make(rank=HIDDEN)
    found = texts(spec, ffn)
    choices = {choice.name: choice for choice in candidates(spec, found, 0.95, 0.5)}
    assert list(choices) == ["exact", "gate_q4", "gate_q2", "low_rank", "low_rank_relu"]
    assert choices["exact"].recall == choices["exact"].precision == 1
    assert choices["gate_q4"].predictor_bytes == FFN * HIDDEN * 18 / 32
    assert choices["gate_q2"].predictor_bytes == FFN * HIDDEN * 10 / 32
    assert choices["gate_q4"].precision > choices["gate_q2"].precision > found.held_out.fires.mean()
    for choice in choices.values():
        assert choice.kept >= 0.95 - 1e-6
        assert choice.read <= choice.chosen < 1
        if choice.fc:
            fc1, fc2 = (part.weight for part in choice.fc)
            assert (fc1.shape, fc2.shape) == ((choice.rank, HIDDEN), (FFN, choice.rank))
            assert fc1.type is fc2.type is TensorType.Q4_0
            assert choice.predictor_bytes == fc1.nbytes + fc2.nbytes <= 0.5 * ffn_bytes(spec)


def test_a_judged_predictor_is_the_one_that_runs():
    spec, ffn = make()
    found = texts(spec, ffn)
    factors = weighted_svd(spec.gate.weight.to_float32(), found.train.n).first(32)
    tried = with_plan(spec, Score.LOW_RANK, factors)
    choice = judged(tried, found, 0.95)
    n = found.held_out.n
    runs = replace(tried, plan=replace(choice.plan, raw_input=True))  # n is normalised already
    gate = n @ spec.gate.weight.to_float32().T
    h, lengths = np.ones_like(gate), np.ones(FFN, np.float32)
    chosen = chosen_neurons(runs, choice.plan.cutoff, n, gate, h, lengths, predictor_matrices(runs))
    assert chosen.mean() == pytest.approx(choice.chosen)
    assert (chosen & found.held_out.fires).sum() / found.held_out.fires.sum() == pytest.approx(choice.recall)


def test_without_a_gate_the_copy_is_of_up():
    spec, ffn = make(gated=False)
    names = [choice.name for choice in candidates(spec, texts(spec, ffn), 0.9, 0.0)]
    assert names == ["exact", "gate_q4", "gate_q2"]  # no bytes for a low rank


def test_training_needs_fewer_neurons():
    spec, ffn = make(rank=16 * HIDDEN)  # no direction of the gate matters much more than another
    found = texts(spec, ffn, tokens=2000, even=True)
    start = weighted_svd(spec.gate.weight.to_float32(), found.train.n).first(32)
    trained = fine_tune(start, found.train.n, found.train.share, rectified=False, price=0.2)
    before, after = (
        judged(with_plan(spec, Score.LOW_RANK, factors), found, 0.95) for factors in (start, trained)
    )
    assert after.chosen < before.chosen


def test_bytes_by_way():
    spec, _ = make()
    one = FFN * HIDDEN * 4
    low_rank = with_plan(spec, Score.LOW_RANK, Factors(np.ones((32, 64), "f4"), np.ones((96, 32), "f4")))
    cases = {
        FFNPlan(Way.DENSE): 3 * one,
        FFNPlan(Way.EXACT): one + 2 * one * 0.1 / GATHERED,
        FFNPlan(Way.THRESHOLD, Score.GATE): one + 2 * one * 0.1 / GATHERED,
        FFNPlan(Way.THRESHOLD, Score.DOWN): 2 * one + one * 0.1 / GATHERED,
    }
    for plan, expected in cases.items():
        assert effective_bytes(NeuronFFNSpec(**vars(spec) | {"plan": plan}), 0.2, 0.1) == pytest.approx(
            expected
        )
    read = predictor_bytes(low_rank)
    assert read == (32 * 64 + 96 * 32) * 18 / 32
    assert effective_bytes(low_rank, 0.2, 0.1) == pytest.approx(read + one * (0.2 + 2 * 0.1) / GATHERED)


def test_the_fastest_good_choice_wins_unless_dense_is_as_fast():
    def choice(kept, ms):
        return Choice(FFNPlan(Way.PREDICTOR, Score.GATE_Q2), kept=kept, ms=ms)

    good, slow, bad = choice(0.99, 0.5), choice(1.0, 0.8), choice(0.9, 0.1)
    assert choose([slow, good, bad], 0.98, 1.0) is good
    assert choose([good], 0.98, 0.51) is None  # not clearly faster
    assert choose([bad], 0.98, 1.0) is None


def test_missing_torch_is_one_line(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(HotsetError, match=r"torch.*hotset\[train\]"):
        fine_tune(
            Factors(np.ones((1, 1), "f4"), np.ones((1, 1), "f4")),
            np.ones((1, 1), "f4"),
            np.ones((1, 1), "f4"),
            rectified=False,
            price=1,
        )
