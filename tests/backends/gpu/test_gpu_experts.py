"""Mixtures of experts of the GPU backend against the reference backend's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.experts import experts_spec, numbers
from helpers.gpu_arrays import assert_close, to_gpu, to_numpy

from hotset.backends.contract import FFNSpec, Linear, Norm
from hotset.backends.gpu.experts import GpuExperts
from hotset.backends.reference import ReferenceBackend
from hotset.core.config import Activation, FFNPlan, Gating, NormKind, Way
from hotset.formats.tensor import TensorType

MIXTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weight is divided": {"normalised": False, "scale": 2.5},
    "sigmoid, biased": {"gating": Gating.SIGMOID, "biased": True, "count": 10},
    "softmax of the selected": {
        "gating": Gating.SELECTED,
        "activation": Activation.SWIGLU_CLAMPED,
        "biased": True,
        "normalised": False,
    },
    "without a gate": {"gated": False, "activation": Activation.RELU2},
    "shared, switched": {"shared": 40},
    "shared, a norm after": {"shared": 40, "switch": False, "post_norm": True},
    "by neuron": {"activation": Activation.RELU, "plan": FFNPlan(Way.EXACT), "biased": True},
    "odd": {"size": 23, "hidden": 50},
    "Q4_0": {"kind": TensorType.Q4_0, "hidden": 96, "size": 64},
    "mixed types": {"kind": TensorType.Q4_K, "down": TensorType.Q8_0, "hidden": 256, "size": 32},
    "by neuron, Q8_0": {
        "kind": TensorType.Q8_0,
        "activation": Activation.RELU,
        "plan": FFNPlan(Way.EXACT),
    },
}


@pytest.mark.parametrize("options", MIXTURES.values(), ids=MIXTURES)
def test_experts(backend: Any, options: dict[str, Any]) -> None:
    spec = experts_spec(**options)
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    # As on the CPU, activations are codes of 8 bits where weights are codes.
    tolerance = 2e-5 if spec.up.weight.type is TensorType.F32 else 0.03
    for rows in (2, 9):
        x = numbers(rows, rows, spec.norm.weight.size)
        weights = reference.select(x)
        assert_close(layer.select(to_gpu(backend, x)), weights, 1e-5)
        expected = x.copy()
        reference.add(x, expected, weights)
        out = to_gpu(backend, x)
        layer.forward(out, out, None)  # in place, as the decoder does
        assert_close(to_numpy(out) - x, expected - x, max(tolerance, 1e-3) if rows > 8 else tolerance)


def test_an_early_router_gives_logits(backend: Any) -> None:
    spec = replace(experts_spec(early=True), router_norm=Norm(NormKind.NONE, 0.0, np.ones(64, np.float32)))
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    x, before = numbers(1, 2, 64), numbers(2, 2, 64)
    expected = x.copy()
    reference.forward(x, expected, None, reference.route(before))
    out = to_gpu(backend, x)
    layer.forward(out, out, None, layer.route(to_gpu(backend, before)))
    assert_close(out, expected, 2e-5)
    assert_close(layer.select(to_gpu(backend, before)), reference.select(before), 1e-5)


def test_neurons_of_selected_experts(backend: Any) -> None:
    spec = experts_spec()
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    x = numbers(1, 4, 64)
    found, expected = ([np.full((4, 6 * 32), np.nan, np.float32) for _ in range(2)] for _ in range(2))
    layer.neurons(to_gpu(backend, x), *found)
    reference.neurons(x, *expected)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 2e-3)
    assert ((found[0] != 0) == (expected[0] != 0)).all()
    assert (found[1][found[0] == 0] == 0).all()


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.Q4_0])
def test_what_is_here_and_what_is_not_add_up(backend: Any, kind: TensorType) -> None:
    """Of two halves each adds its own, also when experts that come are written, and when they are there."""
    spec = experts_spec(count=10, kind=kind, biased=True)
    reference = ReferenceBackend().experts(spec)
    here, there = (GpuExperts(backend.gpu, spec, resident) for resident in ([7, 2, 5, 0], [1, 3, 4, 6, 8, 9]))
    tolerance = 2e-5 if kind is TensorType.F32 else 0.03
    for step in ("nothing", "write", "switch", "write", "switch"):
        leaving, coming = here.resident[1], there.resident[-1]
        if step == "write":
            here.write(coming)
            there.write(leaving)
        elif step == "switch":
            here.switch(leaving, coming)
            there.switch(coming, leaving)
            assert coming in here.resident and leaving in there.resident
        for rows in (2, 9):
            x = numbers(rows, rows, 64)
            expected = np.zeros_like(x)
            weights = reference.select(x)
            reference.add(x, expected, weights)
            out = to_gpu(backend, np.zeros_like(x))
            for part in (here, there):
                part.add(to_gpu(backend, x), out, to_gpu(backend, weights))
            assert_close(out, expected, max(tolerance, 1e-3) if rows > 8 else tolerance)


def test_numbers_that_are_not_finite_are_seen(backend: Any) -> None:
    spec = experts_spec()
    layer = backend.experts(spec)
    for rows in (1, 9):
        x = numbers(1, rows, 64)
        x[0, 3] = np.nan
        out = to_gpu(backend, x * 0 + 1)
        layer.forward(to_gpu(backend, x), out, None)
        assert np.isnan(to_numpy(out)[0]).any()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("count", "groups", "groups_used"), [(12, 4, 2), (6, 6, 3), (34, 2, 1)])
def test_experts_in_groups(backend: Any, count: int, groups: int, groups_used: int, biased: bool) -> None:
    """Groups of several experts, of one, and one that leaves half of them."""
    options = {"groups": groups, "groups_used": groups_used, "biased": biased}
    spec = experts_spec(count=count, gating=Gating.SIGMOID, scale=1.5, **options)
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    x = numbers(1, 40, 64)
    assert_close(layer.select(to_gpu(backend, x)), reference.select(x), 1e-5)
    # Without a bias all are equal, and the first are selected.
    x, even = x[:1], np.zeros((1, count), np.float32)
    found = layer.select(to_gpu(backend, x), to_gpu(backend, even))
    assert_close(found, reference.select(x, even), 1e-5)


def norm(seed: int) -> Norm:
    return Norm(NormKind.RMS, 1e-5, 1 + numbers(seed, 64) / 4)


def test_an_ffn_beside(backend: Any) -> None:
    """As Gemma 4 has it: the router has a norm of its own, experts have factors."""
    spec = experts_spec(post_norm=True)
    up = (Linear(spec.up.weight.part(i)) for i in (0, 1))
    spec = replace(
        spec,
        router_norm=norm(3),
        factors=np.abs(numbers(4, 6)) + np.float32(0.1),
        beside=FFNSpec(norm(5), *up, Linear(spec.down.weight.part(0)), Activation.SILU, norm(6)),
        joined_norm=norm(7),
    )
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    for rows in (1, 9):
        x = numbers(rows, rows, 64)
        assert_close(layer.select(to_gpu(backend, x)), reference.select(x), 1e-5)
        expected = x.copy()
        reference.forward(x, expected, None)
        out = to_gpu(backend, x)
        layer.forward(out, out, None)
        assert_close(to_numpy(out) - x, expected - x, 1e-3 if rows > 8 else 2e-5)


def test_scales_of_experts(backend: Any) -> None:
    """Each expert's own: the numbers become halves."""
    spec = experts_spec(kind=TensorType.NVFP4, hidden=64, size=64)
    scale = np.linspace(0.1, 0.4, spec.shape.count, dtype=np.float32)
    up = replace(spec.up, weight=replace(spec.up.weight, scale=scale))
    spec = replace(spec, up=up)
    layer, reference = backend.experts(spec), ReferenceBackend().experts(spec)
    x = numbers(3, 2, 64)
    expected = x.copy()
    reference.forward(x, expected, None)
    out = to_gpu(backend, x)
    layer.forward(out, out, None)
    assert_close(out, expected, 2e-3)
