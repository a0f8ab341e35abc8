"""Prompts whose cold weights are streamed: the double buffer's order, with a device that is behind."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from helpers.placements import by_share
from helpers.random_checkpoint import random_checkpoint

from hotset.backends.contract import FFN, FFNSpec
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference.ffn import ReferenceFFN
from hotset.core.batch import Batch
from hotset.core.config import Activation
from hotset.hybrid.build import any_ffn_spec, build_hybrid
from hotset.hybrid.slices import cold_slice, ffn_bytes
from hotset.hybrid.streaming import ColdLayer, ColdStream
from hotset.model.build import build_transformer
from hotset.testing.late import LateStandIn
from hotset.testing.stand_in import StandInDevice

LAYERS = 7
CHECKPOINT = random_checkpoint(
    hidden_size=32, ffn_size=256, activation=Activation.SILU, windows=(None,) * LAYERS
)
TOKENS = np.random.default_rng(5).integers(0, 53, 40, dtype=np.int32)


class HastyDevice(LateStandIn):
    """Its copies do not wait for whatever still reads the slot."""

    def follow(self, event: Any) -> None:
        if self.present() is self.stream:
            super().follow(event)


HOT = 64
# A layer's cold neurons in two pieces, or in one.
PIECES = [96 * ffn_bytes(any_ffn_spec(CHECKPOINT, 0)) // 256, 1 << 20]


def stream_of(device: StandInDevice, piece_bytes: int) -> ColdStream:
    layers = [ColdLayer(lambda i=i: any_ffn_spec(CHECKPOINT, i), HOT) for i in range(LAYERS)]
    return ColdStream(device, layers, piece_bytes)


def right_sums(device: LateStandIn, piece_bytes: int, walks: int) -> list[bool]:
    """Of each layer in each walk whether its sum is right."""
    stream = stream_of(device, piece_bytes)
    x = np.random.default_rng(0).standard_normal((9, 32)).astype(np.float32)
    found = [np.zeros_like(x) for _ in range(LAYERS)]
    expected = [np.zeros_like(x) for _ in range(LAYERS)]
    for i, out in enumerate(expected):
        ReferenceFFN(cold_slice(any_ffn_spec(CHECKPOINT, i), HOT)).forward(x, out, None)
    right = []
    for _ in range(walks):
        with stream.walk() as walk:
            for out in found:
                out.fill(0)
                walk.add(x, out, None)
            device.synchronize()
        right += [np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected, strict=True)]
    return right


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_overwritten_before_its_reader_is_done(piece_bytes: int, seed: int) -> None:
    assert all(right_sums(LateStandIn(seed), piece_bytes, 3))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_device_that_is_late_shows_a_slot_without_a_guard() -> None:
    assert not all(right_sums(HastyDevice(), PIECES[0], 5))


def test_the_next_piece_is_copied_meanwhile() -> None:
    """Two layers are under way before the first is asked for, never three."""
    asked: list[int] = []

    def make(i: int) -> FFNSpec:
        asked.append(i)
        return any_ffn_spec(CHECKPOINT, i)  # type: ignore

    device = StandInDevice()
    stream = ColdStream(device, [ColdLayer(lambda i=i: make(i), HOT) for i in range(LAYERS)])
    asked.clear()
    x, out = np.ones((9, 32), np.float32), np.zeros((9, 32), np.float32)
    with stream.walk() as walk:
        for i in range(LAYERS):
            time.sleep(0.02)
            assert asked == list(range(min(i + 2, LAYERS)))
            walk.add(x, out, None)


def test_a_walk_that_is_left_halfway() -> None:
    device = LateStandIn()
    stream = stream_of(device, PIECES[0])
    x, out = np.ones((9, 32), np.float32), np.zeros((9, 32), np.float32)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), stream.walk() as walk:
        walk.add(x, out, None)
        raise KeyboardInterrupt
    assert threading.active_count() == before
    with stream.walk() as walk:
        for _ in range(LAYERS):
            walk.add(x, out, None)


@pytest.mark.parametrize("stream_from", [9, 40, 41])
def test_from_so_many_tokens_on(stream_from: int) -> None:
    device = StandInDevice()
    model = build_hybrid(
        CHECKPOINT, by_share(CHECKPOINT, 0.4, 64), device, CpuBackend(threads=1), stream_from=stream_from
    )
    built: list[FFN] = []
    build_ffn = device.backend.ffn

    def count(spec: FFNSpec) -> FFN:
        built.append(build_ffn(spec))
        return built[-1]

    device.backend.ffn = count  # type: ignore
    usual = build_transformer(CHECKPOINT, CpuBackend(threads=1))
    expected = usual.forward(Batch.of(usual.sequence(40, "f32"), TOKENS, lossless=True, logits=None))
    found = model.forward(Batch.of(model.sequence(40, "f32"), TOKENS, lossless=True, logits=None))
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    assert len(built) == (LAYERS if stream_from <= 40 else 0)
