"""Prompts whose cold weights are streamed: the double buffer's order, with a device that is behind."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from helpers.placements import by_share
from helpers.random_checkpoint import random_checkpoint

from hotset.backends.contract import F32, FFN, FFNSpec
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceFFN
from hotset.core.batch import Batch
from hotset.core.config import Activation
from hotset.hybrid.build import any_ffn_spec, build_hybrid
from hotset.hybrid.slices import cold_slice, ffn_bytes
from hotset.hybrid.streaming import ColdLayer, ColdStream
from hotset.model.build import build_transformer
from hotset.testing.stand_in import StandInDevice

LAYERS = 7
CHECKPOINT = random_checkpoint(
    hidden_size=32, ffn_size=256, activation=Activation.SILU, windows=(None,) * LAYERS
)
TOKENS = np.random.default_rng(5).integers(0, 53, 40, dtype=np.int32)


class LateStream:
    """What a stream is told is done by a thread, a while later."""

    def __init__(self) -> None:
        self._told: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def tell(self, work: Callable[[], None]) -> None:
        with self._wake:
            self._told.append(work)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._told)
                work = self._told.popleft()
            time.sleep(0.001)
            work()


class LateEvent:
    def __init__(self, stream: LateStream) -> None:
        self._past = threading.Event()
        stream.tell(self._past.set)

    def wait(self) -> None:
        assert self._past.wait(20), "it hangs"


class LazyPart:
    """Reads its weights, where they were staged, only when the stream gets to it."""

    def __init__(self, device: "LateDevice", spec: FFNSpec) -> None:
        self._device, self._spec = device, spec

    def forward(self, x: F32, out: F32, view: Any) -> None:
        def compute() -> None:
            ReferenceFFN(self._spec).forward(x, out, None)

        self._device.stream.tell(compute)

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        raise NotImplementedError


class LateDevice(StandInDevice):
    """Two streams that are behind; parts that look at the staged bytes as late as a GPU would."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, self.copies = LateStream(), LateStream()
        self._aside = threading.local()
        self.backend.ffn = lambda spec: LazyPart(self, spec)  # type: ignore

    def mark(self) -> LateEvent:
        return LateEvent(self.copies if getattr(self._aside, "now", False) else self.stream)

    def follow(self, event: Any) -> None:
        self.stream.tell(event.wait)

    def synchronize(self) -> None:
        LateEvent(self.stream).wait()
        LateEvent(self.copies).wait()

    @contextmanager
    def aside(self) -> Any:
        self._aside.now = True
        yield
        self._aside.now = False


HOT = 64
# A layer's cold neurons in two pieces, or in one.
PIECES = [96 * ffn_bytes(any_ffn_spec(CHECKPOINT, 0)) // 256, 1 << 20]


def stream_of(device: StandInDevice, piece_bytes: int) -> ColdStream:
    layers = [ColdLayer(lambda i=i: any_ffn_spec(CHECKPOINT, i), HOT) for i in range(LAYERS)]
    return ColdStream(device, layers, piece_bytes)


@pytest.mark.parametrize("piece_bytes", PIECES)
def test_no_buffer_is_overwritten_before_its_piece_is_done(piece_bytes: int) -> None:
    device = LateDevice()
    stream = stream_of(device, piece_bytes)
    x = np.random.default_rng(0).standard_normal((9, 32)).astype(np.float32)
    found = [np.zeros_like(x) for _ in range(LAYERS)]
    for _ in range(3):
        with stream.walk() as walk:
            for out in found:
                out.fill(0)
                walk.add(x, out, None)
            device.synchronize()
        for i, out in enumerate(found):
            expected = np.zeros_like(x)
            ReferenceFFN(cold_slice(any_ffn_spec(CHECKPOINT, i), HOT)).forward(x, expected, None)
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


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
    device = LateDevice()
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
