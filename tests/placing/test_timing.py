"""Parts of models are timed by excerpts, and what is planned from them is what whole models take."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from helpers.machines import machine
from helpers.random_checkpoint import by_neuron, latent, mixture, random_checkpoint, recurrent
from helpers.shape_only import shape_only
from hybrid.test_hybrid_experts import CONV, EXPERTS, MAMBA, NET

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Work
from hotset.core.config import FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.core.heads import LatentConfig
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.device import DeviceMemoryError
from hotset.placing import excerpt, timing
from hotset.placing.planner import Planner
from hotset.placing.timing import sides, timed
from hotset.testing.stand_in import StandInDevice

LATENT = LatentConfig(rank=6, rope_dim=6, nope_dim=4, value_dim=5, query_rank=7)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps of few copies."""
    few = {"_STEPS": 1, "_EXPERT_STEPS": 2, "_COPIES": (2, 2), "_CHOSEN": (0.0, 0.5, 1.0), "_HOT": (0.5,)}
    for name, value in few.items():
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(timing, "handshake_us", lambda device, hidden: HANDSHAKE)
    monkeypatch.setattr(excerpt, "_SEARCH", 5)
    monkeypatch.setattr(excerpt, "_PROMPT", 16)


def predictor() -> Checkpoint:
    stored = random_checkpoint(ffn_size=256, hidden_size=64, head_dim=8)
    return by_neuron(stored, FFNPlan(Way.PREDICTOR, Score.GATE_Q4, 0.0, 0.9), [np.arange(256)] * 2)


MODELS = {
    "dense": lambda: random_checkpoint(ffn_size=128),
    "parallel": lambda: random_checkpoint(ffn_size=128, parallel=True),
    "exact": lambda: by_neuron(random_checkpoint(ffn_size=128), FFNPlan(Way.EXACT), [np.arange(128)] * 2),
    "predictor": predictor,
    "experts": lambda: mixture(random_checkpoint(), [EXPERTS, None]),
    "early": lambda: mixture(random_checkpoint(), [replace(EXPERTS, early=True, shared_size=0)] * 2),
    "recurrent": lambda: recurrent(random_checkpoint(windows=(None,) * 4), [NET, MAMBA, CONV, None]),
    "latent": lambda: latent(random_checkpoint(), LATENT),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", MODELS)
def test_every_part_is_timed_once(name: str) -> None:
    checkpoint, device, host = MODELS[name](), StandInDevice(), CpuBackend(threads=1)
    told: list[tuple[int, int]] = []
    found = timed(checkpoint, device, host, machine(), progress=lambda *done: told.append(done))
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    times = found.times_of(sides(host, device))
    frequency = [np.full(checkpoint.config.units(i), 0.1) for i in range(checkpoint.config.n_layers)]
    planner = Planner(checkpoint, found, context=32, prompt=8, frequency=frequency, sides=sides(host, device))
    parts = planner.parts
    for layer in parts.layers:
        assert {f"{layer.name} on the host", f"{layer.name} on the device", layer.ffn.name} <= times.keys()
        hots = [row.hot for row in times[layer.ffn.name]]
        assert hots[0] == 0 and hots[-1] == layer.ffn.size
        assert len(hots) > 2 or layer.ffn.size < 64
        for row in times[layer.ffn.name]:
            if layer.ffn.chosen and not layer.ffn.experts and 0 < row.hot < layer.ffn.size:
                assert row.n[0] == 0 and row.n[-1] == layer.ffn.size - row.hot
                assert list(row.us) == sorted(row.us)
    assert parts.step_name in times
    assert timed(checkpoint, device, host, found) is found
    assert planner.plan(planner.everything).ms > 0
    assert device.memory.used == 0  # all excerpts are gone


@pytest.mark.usefixtures("few")
def test_what_the_device_has_no_room_for_is_left_out() -> None:
    checkpoint = MODELS["dense"]()
    needed = sum(t.nbytes for name, t in checkpoint.tensors.items() if name.startswith("blk.0.ffn_"))
    device, host = StandInDevice(needed), CpuBackend(threads=1)  # a copy, where two are wanted
    times = timed(checkpoint, device, host, machine()).times_of(sides(host, device))
    name = next(name for name in times if name.startswith("FFN"))
    assert [row.hot for row in times[name]] == [0, 64]
    assert not any(name.startswith("whole step") for name in times)


# A clock that only known costs move: plans must find them again.


@dataclass
class Clock:
    now: float = 0.0


@dataclass
class FakeChooser:
    cutoff: float = 0.0
    work: Work = field(default_factory=Work)


@dataclass
class FakeSequence:
    capacity: int
    layers: int
    length: int = 0

    def __post_init__(self) -> None:
        self.choosers = [FakeChooser() for _ in range(self.layers)]

    def advance(self, count: int) -> None:
        self.length += count

    def fork(self) -> "FakeSequence":
        return replace(self)


@dataclass
class FakeModel:
    """Of neurons whose scores are -1 to 1, alike; its parts take times as those of a GPU and a CPU."""

    checkpoint: Checkpoint
    placement: Placement
    clock: Clock

    def sequence(self, capacity: int, kv_type: str) -> FakeSequence:
        return FakeSequence(capacity, self.checkpoint.config.n_layers)

    def selections(self, rows: int) -> list[Any]:
        return []

    def forward(self, batch: Batch) -> None:
        sequence: Any = batch.spans[0].sequence
        us = 150.0 + (20 if self.placement.head else 300) * self.checkpoint.config.vocab_size / 256
        on_device = False
        for i, (layer, config) in enumerate(
            zip(self.placement.layers, self.checkpoint.config.layers, strict=True)
        ):
            if config.attention:
                us += HANDSHAKE / 2 * (layer.attention != on_device)
                on_device = layer.attention
                us += (30 + sequence.length / 50) if on_device else (400 + sequence.length / 5)
            if config.feeds:
                needed = layer.hot > 0
                us += HANDSHAKE / 2 * (needed != on_device)
                on_device = needed
                us += self.ffn(layer.hot, sequence.choosers[i])
        us += HANDSHAKE / 2 * (on_device != self.placement.head)
        self.clock.now += us / 1e6
        sequence.length += len(batch.tokens)

    def ffn(self, hot: int, chooser: FakeChooser) -> float:
        cold = 1024 - hot
        chosen = round(cold * min(1.0, max(0.0, (1 - chooser.cutoff) / 2)))
        host, device = 25 + cold / 200 + chosen / 4, 12 + hot / 30
        if not cold:
            return device
        chooser.work += Work(1, chosen, chosen, chosen)
        return host if not hot else HANDSHAKE + 6 + max(host, device)


HANDSHAKE = 10.0


def test_plans_find_known_costs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    frequency = np.sort(np.random.default_rng(0).uniform(0, 0.3, (6, 1024)))[:, ::-1]
    checkpoint = shape_only(
        n_layers=6, hidden=64, ffn=1024, frequency=frequency, plan=FFNPlan(Way.EXACT), context_length=8192
    )
    device, host = StandInDevice(), CpuBackend(threads=1)
    monkeypatch.setattr(excerpt.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(timing, "handshake_us", lambda device, hidden: HANDSHAKE)

    def build(checkpoint: Checkpoint, placement: Placement, *both: Any) -> FakeModel:
        return FakeModel(checkpoint, placement, clock)

    monkeypatch.setattr(timing, "build_hybrid", build)
    found = timed(checkpoint, device, host, machine())
    times = found.times_of(None)
    planner = Planner(checkpoint, found, context=4096, prompt=700)
    whole = times[planner.parts.step_name][0]
    assert whole.us[0] / whole.n[0] == pytest.approx(1, abs=0.03)

    rng = np.random.default_rng(1)
    for _ in range(20):
        layers = tuple(
            LayerPlacement(bool(rng.integers(2)), int(rng.choice([0, 1024, 64 * rng.integers(16)])))
            for _ in range(6)
        )
        placement = Placement(layers, bool(rng.integers(2)))
        sequence = FakeSequence(4096, 6, length=700)
        for layer, chooser, fires in zip(layers, sequence.choosers, frequency, strict=True):
            cold = 1024 - layer.hot
            chooser.cutoff = 1 - 2 * fires[layer.hot :].sum() / max(cold, 1)
        start = clock.now
        FakeModel(checkpoint, placement, clock).forward(Batch.of(sequence, np.zeros(1, np.int32)))  # type: ignore[arg-type]
        assert planner.predicted(placement).ms == pytest.approx((clock.now - start) * 1e3, rel=0.04)


def test_layers_that_do_not_stand_alone_are_not_timed() -> None:
    checkpoint = random_checkpoint()
    layers = (checkpoint.config.layers[0], replace(checkpoint.config.layers[1], kv_from=0))
    shared = replace(checkpoint, config=replace(checkpoint.config, layers=layers))
    profile = machine()
    assert timed(shared, StandInDevice(), CpuBackend(threads=1), profile) is profile


def test_a_full_device_leaves_parts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise DeviceMemoryError("the device is full")

    monkeypatch.setattr(timing, "build_hybrid", full)
    monkeypatch.setattr(timing, "handshake_us", lambda device, hidden: HANDSHAKE)
    found = timed(MODELS["dense"](), StandInDevice(), CpuBackend(threads=1), machine())
    assert [name.split(":")[0] for name in found.times_of(None)] == ["hand-shake"]
