"""The decoder's formulas in NumPy, each written as its definition: what the reference backend is made of, and
what profiles and trials of neurons compute with."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32, LayerInputsSpec, NeuronFFNSpec, Norm
from hotset.backends.low_bit import low_bit_copy
from hotset.core.config import Activation, ExpertsConfig, Gating, NormKind, RopeConfig, Score, Way
from hotset.core.heads import QueryGrowth


def relu(x: F32) -> F32:
    """max(x, 0)."""
    y: F32 = np.maximum(x, 0)
    return y


def sigmoid(x: F32) -> F32:
    """The logistic function, by a form that does not overflow."""
    y: F32 = 0.5 * (1 + np.tanh(0.5 * x))
    return y


def silu(x: F32) -> F32:
    """x times the logistic sigmoid of x."""
    return x * sigmoid(x)


def softplus(x: F32) -> F32:
    """log(1 + e^x), by a form that does not overflow."""
    y: F32 = np.logaddexp(x, np.float32(0))
    return y


def gelu(x: F32) -> F32:
    """x times the standard normal distribution function (arXiv 1606.08415)."""
    erf = np.vectorize(math.erf)(x / math.sqrt(2))
    y: F32 = (x * (0.5 * (1 + erf))).astype(np.float32)
    return y


def gelu_tanh(x: F32) -> F32:
    """The same paper's approximation by tanh."""
    z: F32 = x + 0.044715 * x**3
    y: F32 = x * (0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * z)))
    return y


def clamped_swish(x: F32) -> F32:
    """``g sigmoid(1.702 g)``, g being x or 7, what is less (gpt-oss)."""
    g: F32 = np.minimum(x, np.float32(7))
    return g * sigmoid(np.float32(1.702) * g)


ACTIVATIONS: dict[Activation, Callable[[F32], F32]] = {
    Activation.RELU: relu,
    Activation.DRELU: relu,
    Activation.RELU2: lambda x: relu(x) ** 2,
    Activation.SILU: silu,
    Activation.GELU: gelu,
    Activation.GELU_TANH: gelu_tanh,
    Activation.SWIGLU_CLAMPED: clamped_swish,
}


def neurons(activation: Activation, gate: F32 | None, up: F32) -> F32:
    """The neurons' values, given the products of gate (None: there is none) and up."""
    act = ACTIVATIONS[activation]
    if gate is None:
        return act(up)
    if activation is Activation.DRELU:
        up = act(up)
    elif activation is Activation.SWIGLU_CLAMPED:
        up = np.clip(up, -7, 7) + 1
    return act(gate) * up


def normalise(x: F32, norm: Norm) -> F32:
    """RMS norm (arXiv 1910.07467), layer norm (arXiv 1607.06450) or none over the last axis."""
    if norm.kind is NormKind.NONE:
        return x
    if norm.kind is NormKind.LAYER:
        x = x - x.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + norm.eps)
    y: F32 = x * scale * norm.weight
    return y if norm.bias is None else y + norm.bias


@np.errstate(over="ignore", invalid="ignore")  # damage shows in what is computed
def layer_inputs(spec: LayerInputsSpec, rows: F32, projected: F32) -> F32:
    """Each layer's own embedding (T, L, P), of the table's rows and the products, both (T, L * P)."""
    size = spec.norm.weight.size
    own = rows.reshape(-1, spec.layers, size) * np.float32(size**0.5)
    hidden = spec.project.weight.shape[1]
    read = normalise(projected.reshape(own.shape) * np.float32(hidden**-0.5), spec.norm)
    y: F32 = (own + read) * np.float32(0.5**0.5)
    return y


def soft_cap(x: F32, cap: float) -> F32:
    """``cap tanh(x / cap)``; x, where the cap is 0."""
    y: F32 = np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x
    return y


def growth(of: QueryGrowth, positions: NDArray[np.integer]) -> F32:
    """The factors on queries at positions (T,)."""
    y: F32 = (1 + of.factor * np.log1p(positions // of.context)).astype(np.float32)
    return y


def rotate(x: F32, rope: RopeConfig, positions: NDArray[np.integer], capacity: int = 0) -> F32:
    """RoPE on x (T, heads, head_dim), whose rows stand at `positions` (T,) of a sequence of that capacity."""
    angles = positions[:, None, None] * np.array(rope.frequencies(capacity))
    cos = (rope.magnitude * np.cos(angles)).astype(np.float32)
    sin = (rope.magnitude * np.sin(angles)).astype(np.float32)

    half = rope.dim // 2
    first, second = (
        (slice(0, rope.dim, 2), slice(1, rope.dim, 2))
        if rope.interleaved
        else (slice(0, half), slice(half, rope.dim))
    )
    a, b = x[..., first], x[..., second]
    y: F32 = x.copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    return y


LEAST_SUM = 6.1e-5
"""Weights of experts are divided by no less (the smallest normal half)."""


def route(logits: F32, bias: F32 | None, shape: ExpertsConfig) -> tuple[NDArray[np.intp], F32]:
    """Each row's experts (T, used), in the order of their numbers, and their weights, of logits (T, E).

    `bias` (E,) is added to the probabilities when experts are selected, but not in their weights
    (arXiv 2408.15664). Of equal experts the one with the lower number is selected.
    """
    p = logits
    if shape.gating is not Gating.SELECTED:
        p = softmax(logits) if shape.gating is Gating.SOFTMAX else sigmoid(logits)
    score = p if bias is None else p + bias
    if shape.groups > 1:
        grouped = score.reshape(len(score), shape.groups, -1)
        best = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
        kept = np.argsort(-best, axis=1, kind="stable")[:, : shape.groups_used]
        allowed = np.zeros(best.shape, np.bool_)
        np.put_along_axis(allowed, kept, True, axis=1)
        score = np.where(allowed[:, :, None], grouped, -np.inf).reshape(score.shape)
    experts = np.sort(np.argsort(-score, axis=1, kind="stable")[:, : shape.used], axis=1)
    weights = np.take_along_axis(p, experts, axis=1)
    if shape.gating is Gating.SELECTED:
        weights = softmax(weights)
    if shape.normalised:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), LEAST_SUM)
    return experts, (weights * shape.scale).astype(np.float32)


def softmax(x: F32) -> F32:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y: F32 = e / e.sum(axis=-1, keepdims=True)
    return y


def log_softmax(x: F32) -> F32:
    """Natural logarithm of the softmax over the last axis; sums are taken in float64."""
    shifted = x - x.max(axis=-1, keepdims=True)
    sums = np.exp(shifted).sum(axis=-1, dtype=np.float64, keepdims=True)
    y: F32 = shifted - np.log(sums).astype(np.float32)
    return y


Linear32 = tuple[F32, F32 | None]
"""A weight (out, in) and a bias (out,) as float32."""


def predictor_matrices(spec: NeuronFFNSpec) -> list[Linear32]:
    """What the plan's predictor multiplies by, one matrix after the other; empty for other ways."""
    score = spec.plan.score
    if score in (Score.GATE_Q2, Score.GATE_Q4):
        gate = spec.gate or spec.up
        return [(low_bit_copy(gate.weight.to_float32(), 2 if score is Score.GATE_Q2 else 4), gate.bias)]
    return [(linear.weight.to_float32(), linear.bias) for linear in spec.predictor]


def predict(matrices: Sequence[Linear32], x: F32, rectified: bool) -> F32:
    """Predicted scores (T, F) of a predictor's input (T, D); `rectified`: with a ReLU between matrices."""
    y = x
    for i, (weight, bias) in enumerate(matrices):
        y = (relu(y) if i and rectified else y) @ weight.T
        if bias is not None:
            y += bias
    return y


def chosen_neurons(
    spec: NeuronFFNSpec,
    cutoff: float,
    x: F32,
    gate: F32,
    h: F32,
    lengths: F32,
    matrices: Sequence[Linear32],
) -> NDArray[np.bool_]:
    """Which neurons the plan chooses, (T, F), given all of them.

    x (T, D) is the FFN's input before its norm, gate and h (T, F) are as `FFN.neurons` writes them, `lengths`
    (F,) are those of down's rows and `matrices` the predictor's.
    """
    plan = spec.plan
    if plan.way is Way.DENSE:
        return np.ones(h.shape, np.bool_)
    if plan.way is Way.EXACT:
        fires: NDArray[np.bool_] = h != 0
        return fires
    if plan.score is Score.GATE:
        score = np.abs(ACTIVATIONS[spec.activation](gate))
    elif plan.score is Score.DOWN:
        score = np.abs(h) * lengths
    else:
        read = x if plan.raw_input else normalise(x, spec.norm)
        score = predict(matrices, read, plan.score is Score.LOW_RANK_RELU)
    chosen: NDArray[np.bool_] = score >= np.float32(cutoff)
    return chosen
