"""Nemotron-H stored by neuron: only some layers have an FFN, whose squared ReLUs are skipped exactly."""

from pathlib import Path

import numpy as np
import pytest
from helpers.gguf_export import export_gguf
from helpers.parity import LENGTH, TOKENS, assert_close, run_peer
from helpers.profiles import random_profile
from helpers.tiny_mixtures import nemotron_h_moe
from helpers.tiny_models import nemotron_h, save
from numpy.typing import NDArray

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.convert.by_neuron import convert
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Way
from hotset.formats import Checkpoint, open_checkpoint
from hotset.model.build import build_transformer

EXACT = FFNPlan(Way.EXACT)


def logits(checkpoint: Checkpoint, backend: Backend) -> NDArray[np.float32]:
    """A prompt, then token by token."""
    model = build_transformer(checkpoint, backend)
    sequence = model.sequence(LENGTH, "f32")
    parts = [model.forward(Batch.of(sequence, TOKENS[:30], lossless=True, logits=None))]
    return np.concatenate([*parts, *(model.forward(Batch.of(sequence, t)) for t in TOKENS[30:, None])])


@pytest.mark.parametrize("build", [nemotron_h, nemotron_h_moe], ids=["dense", "mixture"])
def test_by_neuron(build: type, tmp_path: Path) -> None:
    model = build()
    save(model, tmp_path)
    export_gguf(model, tmp_path / "model.gguf")
    original = open_checkpoint(tmp_path / "model.gguf")
    convert(original, tmp_path / "out.gguf", random_profile(original, seed=3))
    converted = open_checkpoint(tmp_path / "out.gguf")
    found = [layer.ffn for layer in converted.config.layers]
    assert found == [EXACT if layer.feeds else None for layer in original.config.layers]
    expected = run_peer(model)
    assert_close(logits(converted, ReferenceBackend()), expected, 1e-3)
    assert_close(logits(converted, CpuBackend(1)), expected, 1e-3)
