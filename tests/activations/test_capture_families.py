"""Captured models compute what the model computes, whatever its layers have besides mixer and FFN."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_families import gemma4, gemma4_shared
from helpers.tiny_models import SIZES, save

from hotset.activations.capture import capture
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.errors import HotsetError
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer


def test_layers_own_inputs_and_scales_are_there(tmp_path: Path) -> None:
    own = {"hidden_size_per_layer_input": 9, "vocab_size_per_layer_input": SIZES["vocab_size"]}
    save(gemma4(**own), tmp_path)
    model = build_transformer(open_checkpoint(tmp_path), ReferenceBackend())
    tokens = np.arange(3, 12, dtype=np.int32)
    seen = {}
    capture(model, [tokens], lambda layer, x, gate, h: seen.update({layer: x.copy()}))

    batch = Batch.of(model.sequence(16), tokens, lossless=True)
    view, x = model.backend.view(batch), model.embedding.forward(batch.tokens, batch.positions)
    e = model.inputs.forward(batch.tokens, x)
    for i, layer in enumerate(model.layers[:-1]):
        layer.forward(x, x, view, e[:, i])
    model.layers[-1].mixer.forward(x, x, view)
    np.testing.assert_allclose(seen[len(model.layers) - 1], x, rtol=0, atol=1e-5)


def test_layers_of_different_widths_are_refused(tmp_path: Path) -> None:
    save(gemma4_shared(), tmp_path)
    model = build_transformer(open_checkpoint(tmp_path), ReferenceBackend())
    with pytest.raises(HotsetError, match="FFNs of 56 to 112 neurons"):
        capture(model, [np.arange(3, 12, dtype=np.int32)], lambda *_: None)
