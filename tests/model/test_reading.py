"""Bytes that a token reads, against sums written out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint

from hotset.core.config import Activation, FFNPlan, Score, Way
from hotset.model.reading import Neurons, traffic

ROW = 20 * 4  # hidden size, float32
NEURONS = 28


@pytest.mark.parametrize(
    ("plan", "gated", "rows"),
    [
        (FFNPlan(Way.DENSE), True, 0),
        (FFNPlan(Way.EXACT), True, 2),
        (FFNPlan(Way.EXACT), False, 1),
        (FFNPlan(Way.THRESHOLD, Score.GATE), True, 2),
        (FFNPlan(Way.THRESHOLD, Score.DOWN), True, 1),
        (FFNPlan(Way.PREDICTOR, Score.GATE_Q2), True, 3),
        (FFNPlan(Way.PREDICTOR, Score.GATE_Q4), False, 2),
    ],
)
def test_rows_left_out(plan: FFNPlan, gated: bool, rows: int) -> None:
    usual = random_checkpoint(gated=gated, activation=Activation.RELU)
    model = by_neuron(usual, plan, [np.arange(NEURONS)] * 2)
    copy = {Score.GATE_Q2: 10 / 32, Score.GATE_Q4: 18 / 32}.get(plan.score, 0.0) if plan.score else 0.0
    everything = sum(tensor.nbytes for tensor in usual.tensors.values())
    found = traffic(model)
    assert found.by_neuron == (rows * ROW,) * 2
    assert found.dense == everything + 2 * int(copy * NEURONS * 20)
    # Of each layer's chosen neurons, two turn out to be zero: only the first row of these is read.
    layers = [Neurons(5, 3), Neurons(7, 5)]
    in_vain = 4 * ROW if plan.way is Way.PREDICTOR else 0
    assert found.bytes_per_token(layers) == found.always + 8 * rows * ROW + in_vain


def test_plain_models_read_everything_but_other_tokens_embeddings() -> None:
    model = random_checkpoint()
    untied = replace(model, tensors={**model.tensors, "output.weight": model.tensors["token_embd.weight"]})
    assert traffic(model).dense == traffic(untied).dense == sum(t.nbytes for t in model.tensors.values())
