"""Mixtures of experts of random weights."""

from typing import Any

import numpy as np

from helpers.random_tensors import random_tensor
from hotset.backends.contract import F32, ExpertsSpec, Linear, Norm, SharedExpertSpec
from hotset.core.config import Activation, ExpertsConfig, FFNPlan, Gating, NormKind
from hotset.formats.tensor import Tensor, TensorType


def numbers(seed: int, *shape: int) -> F32:
    """Of a standard normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stacked(kind: TensorType, *shape: int, seed: int) -> Tensor:
    """A tensor of that type and shape."""
    flat = random_tensor(kind, int(np.prod(shape[:-1])), shape[-1], seed)
    return Tensor(f"experts_{seed}", kind, shape, flat.data)


def experts_spec(
    *,
    hidden: int = 64,
    size: int = 32,
    count: int = 6,
    used: int = 3,
    kind: TensorType = TensorType.F32,
    down: TensorType | None = None,
    activation: Activation = Activation.SILU,
    gated: bool = True,
    gating: Gating = Gating.SOFTMAX,
    biased: bool = False,
    shared: int = 0,
    switch: bool = True,
    post_norm: bool = False,
    plan: FFNPlan | None = None,
    **options: Any,
) -> ExpertsSpec:
    """Experts; `biased`: with biases everywhere, in the router and in the selection too."""

    def linear(seed: int, *shape: int, kind: TensorType = kind) -> Linear:
        return Linear(
            stacked(kind, *shape, seed=seed), numbers(seed + 1, *shape[:-1]) / 4 if biased else None
        )

    down = down or kind
    shape = (count, size, hidden) if plan else (count, hidden, size)
    bias = numbers(50, count, hidden) / 4 if biased else None
    router = Linear(stacked(TensorType.F32, count, hidden, seed=10), numbers(11, count) if biased else None)
    return ExpertsSpec(
        norm=Norm(NormKind.RMS, 1e-5, 1 + numbers(1, hidden) / 4),
        router=router,
        gate=linear(20, count, size, hidden) if gated else None,
        up=linear(30, count, size, hidden),
        down=Linear(stacked(down, *shape, seed=40), bias),
        activation=activation,
        shape=ExpertsConfig(count=count, used=used, size=size, shared_size=shared, gating=gating, **options),
        selection_bias=np.abs(numbers(60, count)) if biased and gating is not Gating.SELECTED else None,
        shared=SharedExpertSpec(
            gate=linear(70, shared, hidden) if gated else None,
            up=linear(80, shared, hidden),
            down=linear(90, hidden, shared),
            switch=Linear(stacked(TensorType.F32, 1, hidden, seed=95)) if switch else None,
        )
        if shared
        else None,
        plan=plan,
        post_norm=Norm(NormKind.RMS, 1e-5, 1 + numbers(2, hidden) / 4) if post_norm else None,
    )
