"""Every architecture, split between the stand-in device and the host, against the same model in one place.

Weights are F16; logits must agree within 1e-3 of the largest: ``max |a - b| <= 1e-3 max |b|``.
"""

from collections.abc import Callable

import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close
from helpers.placements import by_share
from helpers.tiny_models import tiny_models
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid import streaming
from hotset.hybrid.build import build_hybrid
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer
from hotset.testing.stand_in import StandInDevice

PROMPT = 19


def logits(model: Transformer) -> NDArray[np.float32]:
    """A prompt, then token by token, then a few tokens at once."""
    kv = model.sequence(LENGTH, "f32")
    parts = [model.forward(Batch.of(kv, TOKENS[:PROMPT], lossless=True, logits=None))]
    parts += [model.forward(Batch.of(kv, TOKENS[i : i + 1])) for i in range(PROMPT, LENGTH - 4)]
    parts += [model.forward(Batch.of(kv, TOKENS[LENGTH - 4 :], logits=None))]
    assert kv.length == LENGTH
    return np.concatenate(parts)


@pytest.mark.parametrize("name", tiny_models())
def test_logits(name: str, monkeypatch: pytest.MonkeyPatch, tiny: Callable[[str], Checkpoint]) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 5000)  # several pieces to a layer
    checkpoint = tiny(name)
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)))
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        for stream_from in (None, 9) if share in (0.0, 0.5) else (None,):
            model = build_hybrid(
                checkpoint,
                by_share(checkpoint, share),
                StandInDevice(),
                CpuBackend(threads=1),
                stream_from=stream_from,
            )
            assert_close(logits(model), expected, 1e-3)
