"""A model by its name, on a device within a budget: the engine, evaluation and measuring on top of it."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.placements import by_share, eager_machine
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Way
from hotset.core.errors import RequestError
from hotset.formats.tensor import TensorType
from hotset.hybrid.build import build_hybrid
from hotset.model.reading import traffic
from hotset.placing.planner import Planner
from hotset.serve.engine import Engine
from hotset.serve.load import load_model
from hotset.serve.loaded import Model
from hotset.testing.stand_in import StandInDevice

pytest_plugins = ["cli.conftest"]


def test_the_demo_model_writes_the_same(demo: Path) -> None:
    # Each next token is the likeliest by 0.8 nats or more (F32): no instruction set's rounding decides it.
    prompt = "1 2 3 4 5 6 7"
    texts = []
    for options in ({}, {"vram": 60 << 20, "device": StandInDevice(), "machine": eager_machine()}):
        model = load_model(demo, threads=1, context=64, **options)
        engine = Engine(model, context=64)
        texts.append("".join(token.text for token in engine.generate(prompt, max_tokens=12)))
        if options:
            assert model.plan is not None
            assert model.notes == ()
            hot = [layer.hot for layer in model.plan.placement.layers]
            assert 0 < sum(hot) < len(hot) * model.config.ffn_size
    assert texts[0] == texts[1]


class InterruptedDevice(StandInDevice):
    """Ctrl-C comes at one of its calls."""

    calls, at = 0, 0

    def receive(self, x: Any, out: Any, *, add: bool) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        super().receive(x, out, add=add)


def test_an_answer_that_is_interrupted(demo: Path) -> None:
    device = InterruptedDevice()
    model = load_model(demo, threads=1, context=64, vram=60 << 20, device=device, machine=eager_machine())
    engine = Engine(model, context=64)

    def answer() -> list[int]:
        return [token.id for token in engine.generate("One, two, three,", max_tokens=8)]

    device.calls = 0
    expected = answer()
    calls = device.calls
    assert calls > 0
    for at in (1, calls // 2, calls):
        device.calls, device.at = 0, at
        with pytest.raises(KeyboardInterrupt):
            answer()
        assert answer() == expected


def test_kept_conversations_keep_the_budget(demo: Path) -> None:
    """However much room is asked for: the GPU's plan has some for one context."""
    device = StandInDevice()
    model = load_model(demo, threads=1, context=64, vram=60 << 20, device=device, machine=eager_machine())
    assert model.plan and any(layer.attention for layer in model.plan.placement.layers)
    engine = Engine(model, context=64, kv_room=1 << 30)
    used = []
    for prompt in ("1 2 3 4 5 6", "One, two, three,", "Once upon a time"):
        list(engine.generate(prompt, max_tokens=2))
        gc.collect()
        used.append(device.memory.used)
    assert used[0] == used[1] == used[2]


def test_a_budget_of_nothing_is_the_cpus(demo: Path) -> None:
    assert load_model(demo, threads=1, vram=0).plan is None


def test_a_context_that_is_too_long(demo: Path) -> None:
    with pytest.raises(RequestError, match="--context"):
        load_model(demo, threads=1, context=1 << 20, vram=1 << 20, device=StandInDevice())


def test_neurons_computed_are_counted_on_both_sides() -> None:
    usual = random_checkpoint(hidden_size=32, ffn_size=256)
    stored = by_neuron(usual, FFNPlan(Way.EXACT), [np.arange(256)] * 2)
    stored = quantised(stored, TensorType.F16)
    tokens = np.arange(16, dtype=np.int32)  # the first 8 are lossless, and not counted
    planner = Planner(stored, eager_machine(), context=32, prompt=32, frequency=np.full((2, 256), 0.5, "f4"))
    for share in (0.3, 0.6, 1.0):
        plan = planner.plan(planner.everything)
        plan = replace(plan, placement=by_share(stored, share, 64))
        transformer = build_hybrid(stored, plan.placement, StandInDevice(), CpuBackend(threads=1))
        model = Model(
            stored.path,
            transformer,
            None,  # type: ignore[arg-type]
            CpuBackend(threads=1),
            traffic(stored),
            plan,
        )
        kv = model.sequence(32)
        for i in range(16):
            transformer.forward(Batch.of(kv, tokens[i : i + 1]))
        for layer, counts in zip(plan.placement.layers, model.work(kv), strict=True):
            assert counts
            if layer.hot < 256:
                assert counts.rows == 8
                assert 8 * layer.hot < counts.read < 8 * 256
        assert model.chooses_neurons == (share < 1)
