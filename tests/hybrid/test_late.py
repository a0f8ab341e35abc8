"""The hybrid on a device whose streams are behind: what it relies on is what a GPU keeps to."""

import gc
import threading
from typing import Any

import numpy as np
import pytest
from helpers.placements import by_share
from helpers.random_checkpoint import random_checkpoint
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, LayerPlacement, Placement
from hotset.hybrid import streaming
from hotset.hybrid.build import build_hybrid
from hotset.model.build import build_transformer
from hotset.testing.late import LateStandIn

TOKENS = np.random.default_rng(5).integers(0, 53, 40, dtype=np.int32)


def conversations(model: Any) -> list[NDArray[np.float32]]:
    """Prompts, one of them beside a single row, single rows of three sequences, and a few rows of one."""
    first, second, third = (model.sequence(40, "f32") for _ in range(3))

    def rows(*spans: tuple[Any, int]) -> NDArray[np.float32]:
        tokens = np.concatenate([TOKENS[s.length : s.length + count] for s, count in spans])
        lossless = len(tokens) > 8
        return model.forward(Batch(tokens, tuple(Span(s, count, lossless, count) for s, count in spans)))

    return [
        rows((first, 12)),
        rows((first, 1), (second, 15)),
        rows((first, 1), (second, 1), (third, 1)),
        rows((third, 5)),
        *(rows((third, 1), (first, 1)) for _ in range(3)),
        rows((second, 1)),
    ]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 17))]
)
def test_late_streams(seed: int, share: float, parallel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 5000)  # several pieces to a layer
    checkpoint = random_checkpoint(
        hidden_size=32, ffn_size=256, activation=Activation.SILU, windows=(None, 7, None), parallel=parallel
    )
    expected = conversations(build_transformer(checkpoint, CpuBackend(threads=1)))
    device = LateStandIn(seed)
    model = build_hybrid(
        checkpoint, by_share(checkpoint, share, 64), device, CpuBackend(threads=1), stream_from=14
    )
    for found, right in zip(conversations(model), expected, strict=True):
        assert np.abs(found - right).max() <= 1e-3 * np.abs(right).max()
    model.close()


def test_pinned_memory_that_is_given_back_too_early_shows() -> None:
    """The device's poison works: a copy that is still to come brings no numbers."""
    device = LateStandIn()
    out = device.empty((1, 64))
    right = device.pinned((1, 64), np.float32)
    right[:] = 1
    device.upload(right, out)
    device.synchronize()
    np.testing.assert_array_equal(out, 1)
    hold = threading.Event()
    device.tell(hold.wait)
    early = device.pinned((2, 64), np.float32)
    early[:] = 1
    device.upload(early[:1], out)
    del early
    gc.collect()
    hold.set()
    device.synchronize()
    assert np.isnan(out).all()


def test_everywhere() -> None:
    """Attention and FFNs on both sides, a head on the host."""
    checkpoint = random_checkpoint(
        hidden_size=32, ffn_size=256, activation=Activation.SILU, windows=(None,) * 4
    )
    layers = ((True, 64), (False, 0), (True, 256), (False, 128))
    placement = Placement(tuple(LayerPlacement(*layer) for layer in layers), False)
    expected = conversations(build_transformer(checkpoint, CpuBackend(threads=1)))
    model = build_hybrid(checkpoint, placement, LateStandIn(9), CpuBackend(threads=1))
    for found, right in zip(conversations(model), expected, strict=True):
        assert np.abs(found - right).max() <= 1e-3 * np.abs(right).max()
    model.close()
