"""Models stored by neuron against the same models stored as usual, on the reference backend."""

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint

from hotset.backends.reference import ReferenceBackend
from hotset.config import Activation, FFNPlan, Way
from hotset.model.build import build_transformer


@pytest.mark.parametrize("way", [Way.DENSE, Way.EXACT])
@pytest.mark.parametrize(
    ("activation", "gated"),
    [
        (Activation.RELU, True),
        (Activation.RELU, False),
        (Activation.DRELU, True),
        (Activation.RELU2, False),
        (Activation.RELU2, True),
    ],
)
def test_any_order_of_neurons_gives_the_same_logits(activation: Activation, gated: bool, way: Way) -> None:
    usual = random_checkpoint(activation=activation, gated=gated)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(usual.config.ffn_size) for _ in usual.config.layers]
    tokens = rng.integers(0, usual.config.vocab_size, 24, dtype=np.int32)
    logits = []
    for checkpoint in (usual, by_neuron(usual, FFNPlan(way), orders)):
        model = build_transformer(checkpoint, ReferenceBackend())
        kv = model.kv_cache(24, "f32")
        parts = [model.forward(tokens[:12], kv, all_logits=True)]  # a prompt, then tokens one by one
        parts += [model.forward(tokens[i : i + 1], kv) for i in range(12, 24)]
        logits.append(np.concatenate(parts))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)
