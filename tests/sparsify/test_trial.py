"""Tries on whole passages against the same plans in decoding, token by token."""

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint

from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.config import Activation, FFNPlan, Score, Way
from hotset.formats.tensor import tensor_from_array
from hotset.model.build import build_transformer, neuron_ffn_spec
from hotset.sparsify.trial import Trial, TrialFFN

PLANS = [
    FFNPlan(Way.THRESHOLD, Score.GATE, 0.2),
    FFNPlan(Way.THRESHOLD, Score.DOWN, 0.3),
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK, 0.1),
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, 0.1),
    FFNPlan(Way.DENSE),
]
WINDOW = 40


def checkpoint(plan, activation=Activation.SILU, **options):
    # Hidden size 32: the reference's decoding copies gates by blocks of 32.
    made = random_checkpoint(activation=activation, hidden_size=32, **options)
    made = by_neuron(made, plan, [np.arange(28)] * 2)
    rng = np.random.default_rng(9)
    for layer in range(2):
        for part, shape in (("fc1", (8, 32)), ("fc2", (28, 8))):
            name = f"blk.{layer}.{part}.weight"
            made.tensors[name] = tensor_from_array(name, rng.standard_normal(shape).astype(np.float32) / 4)
    return made


def read(made, tokens):
    """Log-probabilities of the second half's predictions: a dense prompt, then token by token."""
    model = build_transformer(made, ReferenceBackend())
    kv = model.sequence(WINDOW, "f32")
    model.forward(Batch.of(kv, tokens[: WINDOW // 2], lossless=True))
    logits = [model.forward(Batch.of(kv, tokens[at : at + 1]))[0] for at in range(WINDOW // 2, WINDOW - 1)]
    logits = np.float64(logits)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("options", [{}, {"parallel": True}], ids=["serial", "parallel"])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: (plan.score or plan.way).value)
def test_a_trial_reads_as_decoding_does(plan, options):
    tokens = np.random.default_rng(2).integers(0, 53, WINDOW).astype(np.int32)
    dense = build_transformer(checkpoint(FFNPlan(Way.DENSE), **options), ReferenceBackend())
    made = checkpoint(plan, **options)
    trial = Trial(dense, [tokens])
    specs = [neuron_ffn_spec(made, layer, plan) for layer in range(2)]
    ffns = [TrialFFN(layer.ffn, spec) for layer, spec in zip(dense.layers, specs, strict=True)]
    found = trial.run(ffns)

    logs, reference = read(made, tokens), read(checkpoint(FFNPlan(Way.DENSE), **options), tokens)
    targets = tokens[WINDOW // 2 + 1 :]
    loss = -logs[np.arange(len(targets)), targets].mean()
    assert found.perplexity == pytest.approx(np.exp(loss), rel=2e-3)  # keys and values are float16 there
    assert found.kl == pytest.approx((np.exp(reference) * (reference - logs)).sum(axis=1).mean(), abs=2e-3)
    assert trial.predictions == WINDOW // 2 - 1
    assert (ffns[0].density < 1) == (plan.way is not Way.DENSE)
    # One layer alone, begun in the middle, is the same as from the start.
    alone = TrialFFN(dense.layers[1].ffn, specs[1])
    assert trial.run_one(1, alone) == trial.run([dense.layers[0].ffn, alone])


def test_the_dense_model_diverges_from_itself_by_nothing():
    tokens = np.random.default_rng(3).integers(0, 53, WINDOW).astype(np.int32)
    dense = build_transformer(checkpoint(FFNPlan(Way.DENSE)), ReferenceBackend())
    trial = Trial(dense, [tokens, tokens[::-1].copy()])
    again = trial.run([layer.ffn for layer in dense.layers])
    assert again.perplexity == pytest.approx(trial.dense.perplexity)
    assert again.kl == pytest.approx(0, abs=1e-6)
    assert trial.inputs[1].shape == (2 * (WINDOW // 2 - 1), 32)
