"""Mixtures of experts and delta nets between a stand-in device and the host; experts are swapped."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.random_checkpoint import latent, mixture, random_checkpoint, recurrent
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.contract import F32
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import (
    DeltaNetConfig,
    ExpertsConfig,
    LayerPlacement,
    MambaConfig,
    Placement,
    ShortConvConfig,
)
from hotset.core.heads import LatentConfig
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid import swaps
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.swaps import LEAST, Counts, Swap, Swaps, choose_swaps
from hotset.model.build import build_transformer, experts_spec
from hotset.model.transformer import Transformer
from hotset.testing.late import LateStandIn
from hotset.testing.stand_in import StandInDevice

EXPERTS = ExpertsConfig(count=10, used=3, size=16, shared_size=12)
PLAIN = ExpertsConfig(count=10, used=2, size=24)
NET = DeltaNetConfig(n_key_heads=2, n_value_heads=4, head_dim=8, kernel=4, tiled=True)
MAMBA = MambaConfig(n_groups=2, n_heads=4, head_dim=6, state_dim=8, kernel=4)
CONV = ShortConvConfig(channels=20, kernel=3)
TOKENS = np.random.default_rng(5).integers(0, 53, 60).astype(np.int32)


def model() -> Checkpoint:
    """Recurrent layers and attention; mixtures with and without a shared expert, dense layers."""
    base = random_checkpoint(windows=(None, None, 5, None, None))
    return recurrent(mixture(base, [EXPERTS, PLAIN, None, EXPERTS, None]), [NET, None, None, MAMBA, CONV])


CHECKPOINT = model()


def logits(transformer: Transformer) -> F32:
    """A prompt, tokens one by one, then two sequences together: of a fork and of the one forked."""
    sequence = transformer.sequence(64, "f32")
    parts = [transformer.forward(Batch.of(sequence, TOKENS[:19], lossless=True, logits=None))]
    parts += [transformer.forward(Batch.of(sequence, TOKENS[i : i + 1])) for i in range(19, 40)]
    both = (sequence, sequence.fork())
    for i in range(40, 50):
        tokens = np.array([TOKENS[i], TOKENS[i] if i < 42 else TOKENS[i + 5]], np.int32)
        parts.append(transformer.forward(Batch(tokens, tuple(Span(s, 1) for s in both))))
    return np.concatenate(parts)


EXPECTED = logits(build_transformer(CHECKPOINT, CpuBackend(threads=1)))


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    layers = []
    for layer in CHECKPOINT.config.layers:
        on_device = draw(st.booleans())
        if layer.experts is None:
            layers.append(LayerPlacement(on_device, draw(st.sampled_from([0, 12, 28]))))
            continue
        resident = draw(st.permutations(range(10)))[: draw(st.integers(0, 10))]
        layers.append(LayerPlacement(on_device, len(resident), tuple(resident)))
    return Placement(tuple(layers), draw(st.booleans()))


HALF = Placement(
    tuple(
        LayerPlacement(i % 2 == 0, 5 if layer.experts else 28, (1, 8, 3, 0, 6) if layer.experts else None)
        for i, layer in enumerate(CHECKPOINT.config.layers)
    ),
    head=True,
)


def assert_close(found: F32, expected: F32 = EXPECTED) -> None:
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


@settings(max_examples=25, deadline=None)
@given(placements())
def test_logits_in_any_placement(placement: Placement) -> None:
    hybrid = build_hybrid(CHECKPOINT, placement, StandInDevice(), CpuBackend(threads=1))
    assert_close(logits(hybrid))
    hybrid.close()


def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swap after each token, for the least gain."""
    for name, value in (("EVERY_TOKENS", 1), ("CLEARLY", 0.0), ("LEAST", 0.01)):
        monkeypatch.setattr(swaps, name, value)


@pytest.mark.parametrize("device", [StandInDevice, LateStandIn])
def test_logits_while_experts_are_swapped(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    hybrid = build_hybrid(CHECKPOINT, HALF, device(), CpuBackend(threads=1), swap_rate=1e9)
    assert_close(logits(hybrid))
    assert hybrid.swaps and hybrid.swaps.done > 5
    hybrid.close()


@pytest.mark.parametrize("device", [StandInDevice, LateStandIn])
def test_rows_while_experts_are_swapped(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One to eight rows of several sequences, with swaps between all of them."""
    eager(monkeypatch)
    hybrid = build_hybrid(CHECKPOINT, HALF, device(), CpuBackend(threads=1), swap_rate=1e9)
    dense = build_transformer(CHECKPOINT, CpuBackend(threads=1))
    sequences = [[model.sequence(32, "f32") for _ in range(8)] for model in (hybrid, dense)]
    for step, rows in enumerate((1, 2, 8, 4, 3, 8, 7, 8)):
        tokens = np.resize(TOKENS[step:], rows).astype(np.int32)
        found, expected = (
            model.forward(Batch(tokens, tuple(Span(s, 1) for s in own[:rows])))
            for model, own in zip((hybrid, dense), sequences, strict=True)
        )
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    assert hybrid.swaps and hybrid.swaps.done > 2
    hybrid.close()


def test_a_swap_waits_for_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second stream is held up, steps go on with the experts that are there."""
    eager(monkeypatch)
    device, hold = LateStandIn(), threading.Event()
    hybrid = build_hybrid(CHECKPOINT, HALF, device, CpuBackend(threads=1), swap_rate=1e9)
    with device.aside():
        device.tell(hold.wait)
    sequence = hybrid.sequence(40, "f32")

    def go_on(count: int) -> None:
        for token in TOKENS[:count]:
            assert np.isfinite(hybrid.forward(Batch.of(sequence, np.array([token], np.int32)))).all()

    go_on(12)
    assert hybrid.swaps and hybrid.swaps.done == 0
    hold.set()
    hybrid.swaps._copier.submit(int).result()  # those begun are told
    device.synchronize()
    go_on(4)
    assert hybrid.swaps.done
    hybrid.close()


def test_a_swap_before_its_copy_shows() -> None:
    """What the stand-ins' slots are there for."""
    device = StandInDevice()
    part = device.resident_experts(experts_spec(CHECKPOINT, 0), [1, 2])
    x = np.random.default_rng(0).standard_normal((1, CHECKPOINT.config.hidden_size)).astype(np.float32)
    weights = part.select(x)
    part.write(5)
    part.switch(1, 5)
    out = np.zeros_like(x)
    part.add(x, out, weights)
    assert np.isfinite(out).all() and part.resident == [2, 5]
    part.write(3)
    part.switch(2, 4)
    part.add(x, out, weights)
    assert np.isnan(out).all()


def test_on_the_gpu_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from hotset.testing.interpreted import InterpretedDevice

    eager(monkeypatch)
    plain = mixture(random_checkpoint(windows=(None, 5)), [EXPERTS, PLAIN])
    half = Placement(
        (LayerPlacement(True, 4, (1, 8, 3, 0)), LayerPlacement(False, 4, (2, 3, 4, 5))), head=True
    )
    hybrid = build_hybrid(plain, half, InterpretedDevice(), CpuBackend(threads=1), swap_rate=1e9)

    def short(transformer: Transformer) -> F32:
        sequence = transformer.sequence(32, "f32")
        parts = [transformer.forward(Batch.of(sequence, TOKENS[:10], lossless=True, logits=None))]
        parts += [transformer.forward(Batch.of(sequence, TOKENS[i : i + 1])) for i in range(10, 16)]
        return np.concatenate(parts)

    assert_close(short(hybrid), short(build_transformer(plain, CpuBackend(threads=1))))
    assert hybrid.swaps and hybrid.swaps.done
    hybrid.close()


@pytest.mark.parametrize("device", [StandInDevice, LateStandIn])
def test_latent_attention_on_both_sides(device: Any) -> None:
    shape = LatentConfig(rank=12, rope_dim=6, nope_dim=5, value_dim=7, query_rank=9)
    checkpoint = latent(mixture(random_checkpoint(windows=(None,) * 3), [EXPERTS, PLAIN, None]), shape)
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)))
    places = (LayerPlacement(True, 4), LayerPlacement(False, 10), LayerPlacement(True, 12))
    hybrid = build_hybrid(checkpoint, Placement(places, head=True), device(), CpuBackend(threads=1))
    assert_close(logits(hybrid), expected)
    hybrid.close()


def test_rewinds_go_to_saved_states() -> None:
    checkpoint = replace(CHECKPOINT, config=replace(CHECKPOINT.config, context_length=256))
    hybrid = build_hybrid(checkpoint, HALF, StandInDevice(), CpuBackend(threads=1))
    tokens = np.resize(TOKENS, 200)
    sequence = hybrid.sequence(256, "f32")
    everything = []
    for start in range(0, 200, 50):
        everything.append(
            hybrid.forward(Batch.of(sequence, tokens[start : start + 50], lossless=True, logits=None))
        )
        sequence.save()
    expected = np.concatenate(everything)
    assert sequence.saved_bytes > 0
    for asked in (160, 99):
        length = sequence.reusable(asked)
        assert asked - 50 < length <= asked and sequence.reusable(length) == length
        sequence.rewind(length)
        again = hybrid.forward(Batch.of(sequence, tokens[length:200], lossless=True, logits=None))
        assert_close(again, expected[length:])
    sequence.limit_saved(0)
    assert sequence.saved_bytes == 0
    hybrid.close()


def test_a_step_says_what_both_sides_do() -> None:
    hybrid = build_hybrid(CHECKPOINT, HALF, StandInDevice(), CpuBackend(threads=1))
    text = str(hybrid.step)
    assert "select experts 0 of x to weights" in text
    assert "send selection 1, weights as" in text
    assert "add experts 3 of" in text
    hybrid.close()


@pytest.mark.parametrize("device", [StandInDevice, LateStandIn])
@pytest.mark.parametrize("hot", [0, 4, 10])
def test_early_routers(hot: int, device: type[StandInDevice]) -> None:
    """With attention on either side, and with a mixture on the other one before and after."""
    early = ExpertsConfig(count=10, used=3, size=16, early=True)
    base = random_checkpoint(windows=(None, 5, None, None))
    checkpoint = mixture(base, [early, replace(early, shared_size=12), early, early])
    layers = [(True, hot), (False, hot), (True, 10 - hot), (False, 10 - hot)]
    placement = Placement(tuple(LayerPlacement(*layer) for layer in layers), head=False)
    hybrid = build_hybrid(checkpoint, placement, device(), CpuBackend(threads=1))
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)))
    assert np.abs(logits(hybrid) - expected).max() <= 1e-3 * np.abs(expected).max()
    hybrid.close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 100), min_size=6, max_size=6), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(0, 20),
)
def test_swaps_bring_what_is_hotter(counts: list[list[float]], here: int, most: int) -> None:
    resident = [list(range(here)) for _ in counts]
    array = np.array(counts)
    chosen = choose_swaps(array, resident, most)
    assert len(chosen) <= most
    moved: set[tuple[int, int]] = set()
    for swap in chosen:
        own = array[swap.mixture]
        assert swap.leaving in resident[swap.mixture] and swap.coming not in resident[swap.mixture]
        assert own[swap.coming] >= own[swap.leaving] + LEAST
        for expert in (swap.leaving, swap.coming):
            assert (swap.mixture, expert) not in moved
            moved.add((swap.mixture, expert))
    gains = [array[s.mixture, s.coming] - array[s.mixture, s.leaving] for s in chosen]
    assert gains == sorted(gains, reverse=True)
    if most >= 18:  # nothing that is clearly hotter is left outside
        for swap in chosen:
            resident[swap.mixture][resident[swap.mixture].index(swap.leaving)] = swap.coming
        assert not choose_swaps(array, resident, most)


class _Slots:
    def __init__(self) -> None:
        self.resident = [0, 1]
        self.written: list[int] = []

    def write(self, expert: int) -> None:
        self.written.append(expert)

    def switch(self, leaving: int, coming: int) -> None:
        self.resident[self.resident.index(leaving)] = coming


def test_swaps_keep_to_their_rate() -> None:
    now = 0.0
    slots = [_Slots() for _ in range(8)]
    watched = Swaps(slots, 4, 1000, 2500.0, StandInDevice(), clock=lambda: now)  # type: ignore[arg-type]
    selected = np.zeros((8, 1, 4), np.float32)
    selected[:, :, 2:] = 0.5
    moved = []
    for second in range(6):
        now = float(second)
        for _ in range(swaps.EVERY_TOKENS):
            watched.after_step(selected)
        watched._copier.submit(int).result()  # those begun are done
        moved.append(sum(len(slot.written) for slot in slots))
    watched.close()
    # Two and a half experts a second, of which none is saved up for longer than one.
    assert moved in ([0, 2, 4, 6, 8, 10], [0, 2, 5, 7, 10, 12])
    assert all(slot.resident != [0, 1] for slot in slots[:2])


def test_a_copy_that_fails_is_reported_once_and_is_the_last(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(_Slots):
        def write(self, expert: int) -> None:
            super().write(expert)
            raise OSError("the bus is gone")

    slots = [Failing() for _ in range(3)]
    watched = Swaps(slots, 4, 1000, 1e9, StandInDevice())  # type: ignore[arg-type]
    selected = np.zeros((3, 1, 4), np.float32)
    selected[:, :, 2:] = 0.5
    for _ in range(4 * swaps.EVERY_TOKENS):
        watched.after_step(selected)
        watched._copier.submit(int).result()  # those begun are over
    watched.close()
    assert [slot.written for slot in slots] == [[2], [2], [2]]
    assert all(slot.resident == [0, 1] for slot in slots)
    (record,) = caplog.records
    assert "could not be copied to the stand-in (the bus is gone)" in record.getMessage()


def test_counts_forget() -> None:
    counts = Counts(1, 3)
    for _ in range(1000):
        counts.add(np.array([[[0.5, -0.5, 0.0]]], np.float32))
    steady = counts.counts.copy()
    assert steady[0, 0] == steady[0, 1] > 100 and steady[0, 2] == 0
    for _ in range(swaps.MEMORY_TOKENS):
        counts.add(np.array([[[0.0, 0.0, 1.0]]], np.float32))
    assert counts.counts[0, 0] == pytest.approx(steady[0, 0] / 2)
    assert choose_swaps(counts.counts, [[0]], 1) == []
    assert choose_swaps(counts.counts * [[0.5, 1, 1]], [[0]], 1) == [Swap(0, 0, 2)]
