"""Experts stored by neuron, between a stand-in device and the host, which skips what is zero."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.profiles import random_profile
from helpers.random_gguf import LAYERS, TOKENS, random_model, write_plain

from hotset.backends.contract import F32
from hotset.backends.cpu import CpuBackend
from hotset.convert.by_neuron import convert
from hotset.core.batch import Batch
from hotset.core.config import LayerPlacement, Placement, Way
from hotset.formats import Checkpoint, open_checkpoint
from hotset.hybrid.build import build_hybrid
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer
from hotset.testing.stand_in import StandInDevice


@pytest.fixture(scope="module")
def by_neuron(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("mixture")
    model = random_model("qwen2moe", activation="relu")
    weights = {name: values.astype(np.float16).astype(np.float32) for name, values in model.weights.items()}
    path: Path = write_plain(directory / "plain.gguf", replace(model, weights=weights), Q.F16)
    source = open_checkpoint(path)
    convert(source, directory / "by_neuron.gguf", random_profile(source))
    return open_checkpoint(directory / "by_neuron.gguf")


def logits(transformer: Transformer) -> F32:
    sequence = transformer.sequence(32, "f32")
    parts = [transformer.forward(Batch.of(sequence, TOKENS[:9], lossless=True, logits=None))]
    parts += [transformer.forward(Batch.of(sequence, token)) for token in np.tile(TOKENS, 2)[9:, None]]
    return np.concatenate(parts)


@pytest.mark.parametrize("experts", [(), (1, 4, 0), (5, 0, 1, 2, 3, 4)], ids=["cold", "half", "hot"])
def test_logits(by_neuron: Checkpoint, experts: tuple[int, ...]) -> None:
    assert all(layer.ffn and layer.ffn.way is Way.EXACT for layer in by_neuron.config.layers)
    expected = logits(build_transformer(by_neuron, CpuBackend(threads=1)))
    placement = Placement((LayerPlacement(True, len(experts), experts),) * LAYERS, head=True)
    hybrid = build_hybrid(by_neuron, placement, StandInDevice(), CpuBackend(threads=1))
    found = logits(hybrid)
    hybrid.close()
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
