"""The zones of a token's time add up to it."""

import time

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import Activation, FFNPlan, Way
from hotset.model.build import build_transformer

DENSE = {"FFN: gate and up", "FFN: down"}


@pytest.mark.parametrize("plan", [None, FFNPlan(Way.EXACT)])
def test_zones_add_up_to_the_time(plan: FFNPlan | None) -> None:
    checkpoint = random_checkpoint(hidden_size=32, ffn_size=300, activation=Activation.RELU)
    if plan:
        checkpoint = by_neuron(checkpoint, plan, [np.arange(300)] * checkpoint.config.n_layers)
    backend = CpuBackend(threads=1)
    transformer = build_transformer(checkpoint, backend)
    sequence = transformer.sequence(64)
    tokens = np.arange(40, dtype=np.int32)
    started = time.perf_counter()
    with backend.zones() as zones:
        within = time.perf_counter()
        transformer.forward(Batch.of(sequence, tokens[:20], lossless=True))
        for token in range(20, 40):
            transformer.forward(Batch.of(sequence, tokens[token : token + 1]))
        spent = time.perf_counter() - within
    assert spent <= sum(zones.values()) <= time.perf_counter() - started
    entered = {name for name, seconds in zones.items() if seconds}
    assert entered >= {"attention: scores and sums", "head", *(() if plan else DENSE)}
    assert ("FFN: chosen neurons" in entered) == (plan is not None)

    with backend.zones() as zones:  # again
        pass
    assert sum(seconds for name, seconds in zones.items() if not name.startswith("outside")) == 0
