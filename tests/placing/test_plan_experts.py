"""Plans at the grain of experts keep their budget, and never get slower with more."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.machines import machine
from helpers.shape_only import empty_tensor, shape_only
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.config import DeltaNetConfig, ExpertsConfig, LayerConfig
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType
from hotset.placing.planner import Plan, Planner

HIDDEN = 512
NET = DeltaNetConfig(n_key_heads=2, n_value_heads=4, head_dim=64, kernel=4, tiled=True)


def mixture(layers: list[LayerConfig], kind: TensorType) -> Checkpoint:
    """Dense layers of 256 neurons where there are no experts."""
    dense = shape_only(n_layers=len(layers), hidden=HIDDEN, ffn=256, kind=kind, layers=tuple(layers))
    tensors: dict[str, Tensor] = dict(dense.tensors)

    def add(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = empty_tensor(f"{name}.weight", kind, *shape)

    for i, layer in enumerate(layers):
        own, experts = f"blk.{i}", layer.experts
        if layer.recurrent:
            for part in ("q", "k", "v", "output"):
                del tensors[f"{own}.attn_{part}.weight"]
            add(f"{own}.attn_qkv", NET.channels, HIDDEN)
            add(f"{own}.ssm_out", HIDDEN, NET.n_value_heads * NET.head_dim)
        if experts:
            for part in ("gate", "up", "down"):
                del tensors[f"{own}.ffn_{part}.weight"]
            add(f"{own}.ffn_gate_inp", experts.count, HIDDEN)
            for part in ("gate", "up"):
                add(f"{own}.ffn_{part}_exps", experts.count, experts.size, HIDDEN)
            add(f"{own}.ffn_down_exps", experts.count, HIDDEN, experts.size)
    return replace(dense, tensors=tensors)


@st.composite
def planners(draw: st.DrawFn) -> Planner:
    """Dense and mixed layers, attention and delta nets, uniform and skewed routers."""
    layers, frequency = [], []
    for _ in range(draw(st.integers(1, 6))):
        net = NET if draw(st.booleans()) else None
        if draw(st.integers(0, 3)) == 0:
            layers.append(LayerConfig(None, recurrent=net))
            frequency.append(np.ones(256))
            continue
        count = draw(st.sampled_from([6, 10, 64]))
        experts = ExpertsConfig(count=count, used=3, size=64 * draw(st.integers(1, 4)))
        weights = (np.arange(count) + 1.0) ** -draw(st.floats(0, 1.5))
        frequency.append(np.minimum(1, 3 * weights / weights.sum()))
        layers.append(LayerConfig(None, experts=experts, recurrent=net))
    kind = draw(st.sampled_from([TensorType.F16, TensorType.Q4_0]))
    slow = machine(cpu_stream=draw(st.floats(20, 100)), gpu_handshake_us=draw(st.floats(0, 40)))
    return Planner(
        mixture(layers, kind),
        slow,
        context=draw(st.sampled_from([128, 4096])),
        prompt=64,
        frequency=frequency if draw(st.booleans()) else None,
    )


def on_device(planner: Planner, plan: Plan) -> int:
    """Bytes on the GPU, from the parts' sizes."""
    total = 0
    for layer, placed in zip(planner.parts.layers, plan.placement.layers, strict=True):
        if placed.attention:
            total += layer.attention_bytes + layer.kept_bytes(planner.context, 1)
        total += round(placed.hot * layer.ffn.unit_bytes) + layer.ffn.fixed_bytes * (placed.hot > 0)
        if layer.ffn.experts and 0 < placed.hot < layer.ffn.size:
            total += math.ceil(layer.ffn.unit_bytes)  # the spare slot
    return total + planner.parts.head_bytes * plan.placement.head


@settings(max_examples=60, deadline=None)
@given(planners(), st.floats(0, 1.1))
def test_a_plan_keeps_its_budget(planner: Planner, share: float) -> None:
    plan = planner.plan(int(share * planner.everything))
    assert plan.device_bytes <= plan.budget
    assert plan.device_bytes - plan.working_bytes == on_device(planner, plan)
    assert plan.placement.fits(planner.parts.config)
    again = planner.predicted(plan.placement)
    assert again.ms == pytest.approx(plan.ms) and again.device_bytes == plan.device_bytes


@settings(max_examples=30, deadline=None)
@given(planners(), st.lists(st.floats(0, 1.1), min_size=2, max_size=5))
def test_more_memory_is_never_predicted_slower(planner: Planner, shares: list[float]) -> None:
    for less, more in pairwise([planner.plan(int(share * planner.everything)) for share in sorted(shares)]):
        assert more.ms <= less.ms


def test_each_sequence_has_states() -> None:
    """The present one, the next, and those that were saved to come back to."""
    checkpoint = mixture([LayerConfig(None, recurrent=NET), LayerConfig(None)], TensorType.F16)
    for sequences in (1, 3):
        planner = Planner(checkpoint, machine(), context=64, prompt=8, sequences=sequences)
        recurrent, attention = planner.plan(planner.everything).layers
        assert recurrent.kv_bytes == (2 + 6) * sequences * 4 * NET.state_size
        assert attention.kv_bytes == 64 * 2 * 2 * 128 * 2


def test_hot_experts_pay_by_how_often_they_are_selected() -> None:
    """A skewed router's hottest eighth spares the processor most of its work, a uniform one's an eighth."""
    experts = ExpertsConfig(count=64, used=4, size=1024)
    checkpoint = mixture([LayerConfig(None, experts=experts)] * 4, TensorType.Q4_0)

    def spared(frequency: list[np.ndarray] | None) -> float:
        planner = Planner(checkpoint, machine(), context=128, prompt=64, frequency=frequency)
        layers = planner.plan(planner.everything).placement.layers
        none, some = (
            planner.predicted(replace(placement, layers=tuple(replace(layer, hot=hot) for layer in layers)))
            for placement, hot in ((planner.plan(planner.everything).placement, n) for n in (0, 8))
        )
        return (none.times.ffn - some.times.ffn) / none.times.ffn

    skewed = np.zeros(64)
    skewed[:8], skewed[8:] = 0.4, 0.8 / 56
    assert spared([skewed] * 4) > 2.5 * spared(None) > 0
