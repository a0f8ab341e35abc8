"""Neurons of the CPU backend: their values, and the FFN that computes some of them, by their definition."""

import numpy as np
import pytest
from test_cpu import HIDDEN, assert_close, linear, norm, numbers

from hotset.backends.base import F32, FFNSpec
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ACTIVATIONS, normalise
from hotset.config import Activation

LEVELS = CpuBackend.levels()


@pytest.fixture(scope="module", params=LEVELS)
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    return CpuBackend(threads=2, level=request.param)


def values(spec: FFNSpec, x: F32) -> tuple[F32, F32]:
    """Pre-activations of the gate (of up, where there is none) and the neurons' values, by definition."""

    def product(part: object) -> F32:
        y: F32 = normalise(x, spec.norm) @ part.weight.to_float32().T  # type: ignore[attr-defined]
        return y if part.bias is None else y + part.bias  # type: ignore[attr-defined]

    act = ACTIVATIONS[spec.activation]
    up = product(spec.up)
    if spec.gate is None:
        return up, act(up)
    gate = product(spec.gate)
    return gate, act(gate) * (np.maximum(up, 0) if spec.activation is Activation.DRELU else up)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(Activation))
def test_values_of_a_dense_ffn(backend: CpuBackend, activation: Activation, gated: bool) -> None:
    if activation is Activation.DRELU and not gated:
        pytest.skip("dReLU is gated")
    size = 2111
    spec = FFNSpec(
        norm=norm(1, HIDDEN),
        gate=linear(10, size, HIDDEN, bias=True) if gated else None,
        up=linear(20, size, HIDDEN, bias=True),
        down=linear(30, HIDDEN, size),
        activation=activation,
    )
    layer = backend.ffn(spec)
    for length in (1, 2, 17):
        x = numbers(length, length, HIDDEN)
        gate, h = np.empty((2, length, size), np.float32)
        layer.neurons(x, gate, h)
        assert_close([gate, h], list(values(spec, x)))
    with pytest.raises(ValueError, match="gate: expected"):
        layer.neurons(x, gate.T.copy(), h)
