"""The oracle: every part of the decoder in plain NumPy, written to be read as its definition.

Weights are dequantised to float32 and all arithmetic is float32. Nothing is fused, blocked or kept small, so
it is slow and needs four bytes a weight; other backends are tested against it, and it against `transformers`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotset.backends.contract import (
    DENSE_TOKENS,
    F32,
    AttentionSpec,
    EmbeddingSpec,
    FFNSpec,
    HeadSpec,
    KVCache,
    Linear,
    NeuronCounts,
    NeuronFFNSpec,
    Norm,
)
from hotset.backends.low_bit import low_bit_copy
from hotset.core.config import Activation, NormKind, RopeConfig, Score, Way
from hotset.core.errors import HotsetError


def relu(x: F32) -> F32:
    """max(x, 0)."""
    y: F32 = np.maximum(x, 0)
    return y


def silu(x: F32) -> F32:
    """x times the logistic sigmoid of x, by a form that does not overflow."""
    y: F32 = x * (0.5 * (1 + np.tanh(0.5 * x)))
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


ACTIVATIONS: dict[Activation, Callable[[F32], F32]] = {
    Activation.RELU: relu,
    Activation.DRELU: relu,
    Activation.RELU2: lambda x: relu(x) ** 2,
    Activation.SILU: silu,
    Activation.GELU: gelu,
    Activation.GELU_TANH: gelu_tanh,
}


def normalise(x: F32, norm: Norm) -> F32:
    """RMS norm (arXiv 1910.07467) or layer norm (arXiv 1607.06450) over the last axis."""
    if norm.kind is NormKind.LAYER:
        x = x - x.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + norm.eps)
    y: F32 = x * scale * norm.weight
    return y if norm.bias is None else y + norm.bias


def rotate(x: F32, rope: RopeConfig, position: int) -> F32:
    """RoPE on x (T, heads, head_dim), whose first token stands at `position`."""
    positions = np.arange(position, position + x.shape[0])
    angles = positions[:, None, None] * np.array(rope.inverse_frequencies)
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


def softmax(x: F32) -> F32:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y: F32 = e / e.sum(axis=-1, keepdims=True)
    return y


class ReferenceLinear:
    """``y = x W^T + b``."""

    def __init__(self, linear: Linear) -> None:
        self.weight = linear.weight.to_float32()
        self.bias = linear.bias

    def __call__(self, x: F32) -> F32:
        """Of x (T, in): (T, out)."""
        y: F32 = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class ReferenceKVCache:
    """Keys and values as two arrays (layers, capacity, n_kv_heads, head_dim)."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: DTypeLike) -> None:
        self.keys = np.zeros(shape, dtype)
        self.values = np.zeros(shape, dtype)
        self.length = 0
        self.capacity = shape[1]

    def advance(self, count: int) -> None:
        """See `KVCache`."""
        self.length += count

    def truncate(self, length: int) -> None:
        """See `KVCache`."""
        self.length = length


class ReferenceEmbedding:
    """A row of the table for each token, and one for its position where there is such a table."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.tokens = spec.tokens.to_float32()
        self.positions = None if spec.positions is None else spec.positions.to_float32()
        self.scale = np.float32(spec.scale)
        self.position_offset = spec.position_offset

    def forward(self, tokens: NDArray[np.int32], position: int) -> F32:
        """See `Embedding`."""
        x: F32 = self.tokens[tokens] * self.scale
        if self.positions is not None:
            first = position + self.position_offset
            x += self.positions[first : first + len(tokens)]
        return x


class ReferenceAttention:
    """Grouped-query attention with the whole matrix of scores."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self.q, self.k, self.v = ReferenceLinear(spec.q), ReferenceLinear(spec.k), ReferenceLinear(spec.v)
        self.output = ReferenceLinear(spec.output)

    def forward(self, x: F32, out: F32, kv: KVCache, layer: int) -> None:
        """See `Attention`."""
        assert isinstance(kv, ReferenceKVCache)
        s = self.spec
        start, end = kv.length, kv.length + len(x)

        n = normalise(x, s.norm)
        q = self.q(n).reshape(-1, s.n_heads, s.head_dim)
        k = self.k(n).reshape(-1, s.n_kv_heads, s.head_dim)
        v = self.v(n).reshape(-1, s.n_kv_heads, s.head_dim)
        if s.q_norm:
            q = normalise(q, s.q_norm)
        if s.k_norm:
            k = normalise(k, s.k_norm)
        if s.rope:
            q, k = rotate(q, s.rope, start), rotate(k, s.rope, start)
        kv.keys[layer, start:end] = k
        kv.values[layer, start:end] = v

        # Heads first: queries (H, T, d) against the keys (H, S, d) of all positions so far. A key-value head
        # serves n_heads / n_kv_heads query heads that follow one another.
        group = s.n_heads // s.n_kv_heads
        queries = q.transpose(1, 0, 2)
        keys = kv.keys[layer, :end].astype(np.float32).transpose(1, 0, 2).repeat(group, axis=0)
        values = kv.values[layer, :end].astype(np.float32).transpose(1, 0, 2).repeat(group, axis=0)

        distance = np.arange(start, end)[:, None] - np.arange(end)[None, :]
        visible = distance >= 0
        if s.window is not None:
            visible &= distance < s.window
        scores = np.where(visible, s.scale * (queries @ keys.transpose(0, 2, 1)), -np.inf)
        mixed = softmax(scores) @ values
        y = self.output(mixed.transpose(1, 0, 2).reshape(len(x), -1))
        out += normalise(y, s.post_norm) if s.post_norm else y


class ReferenceFFN:
    """All neurons, for every token."""

    def __init__(self, spec: FFNSpec) -> None:
        self.norm, self.post_norm = spec.norm, spec.post_norm
        self.hidden = _Neurons(spec)
        self.down = ReferenceLinear(spec.down)

    def forward(self, x: F32, out: F32, dense: bool = False) -> None:
        """See `FFN`."""
        y = self.down(self.hidden(normalise(x, self.norm))[1])
        out += normalise(y, self.post_norm) if self.post_norm else y

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        """See `FFN`."""
        gate[:], h[:] = self.hidden(normalise(x, self.norm))


class _Neurons:
    """Of normalised input (T, D): the activation's input and the neurons' values, both (T, F)."""

    def __init__(self, spec: FFNSpec | NeuronFFNSpec) -> None:
        self.activation = spec.activation
        self.gate = ReferenceLinear(spec.gate) if spec.gate else None
        self.up = ReferenceLinear(spec.up)

    def __call__(self, n: F32) -> tuple[F32, F32]:
        act = ACTIVATIONS[self.activation]
        up = self.up(n)
        if self.gate is None:
            return up, act(up)
        if self.activation is Activation.DRELU:
            up = act(up)
        gate = self.gate(n)
        return gate, act(gate) * up


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


class ReferenceNeuronFFN:
    """Computes all neurons, then forgets those that its plan would not have computed. Nothing adapts."""

    def __init__(self, spec: NeuronFFNSpec) -> None:
        self.spec = spec
        self.cutoff = spec.plan.cutoff
        self.recall_seen = math.nan
        self.hidden = _Neurons(spec)
        self._down_t = spec.down_t.weight.to_float32()
        self._lengths = np.linalg.norm(self._down_t, axis=1)
        self._matrices = predictor_matrices(spec)
        self._counts = np.zeros(3, np.int64)

    def counts(self) -> NeuronCounts:
        """See `NeuronFFN`."""
        return NeuronCounts(*map(int, self._counts))

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        """See `FFN`."""
        gate[:], h[:] = self.hidden(normalise(x, self.spec.norm))

    def forward(self, x: F32, out: F32, dense: bool = False) -> None:
        """See `FFN`."""
        spec = self.spec
        gate, h = self.hidden(normalise(x, spec.norm))
        if len(x) <= DENSE_TOKENS and not (dense and spec.plan.way.approximate):
            chosen = chosen_neurons(spec, self.cutoff, x, gate, h, self._lengths, self._matrices)
            # Of a chosen neuron whose gate turns out to be zero, the row of down is not read.
            read = chosen & (h != 0) if spec.activation.zero_producing else chosen
            h = np.where(read, h, np.float32(0))
            if not dense:
                self._counts += [len(x), int(read.sum()), int((h != 0).sum())]
        y: F32 = h @ self._down_t
        if spec.down_t.bias is not None:
            y += spec.down_t.bias
        out += normalise(y, spec.post_norm) if spec.post_norm else y


class ReferenceHead:
    """The final norm and the output projection."""

    def __init__(self, spec: HeadSpec) -> None:
        self.norm = spec.norm
        self.output = ReferenceLinear(spec.output)

    def forward(self, x: F32) -> F32:
        """See `Head`."""
        return self.output(normalise(x, self.norm))


class ReferenceBackend:
    """Builds the parts; see `hotset.backends.contract.Backend`."""

    name = "reference"

    def copy(self, x: F32) -> F32:
        """See `Backend`."""
        y: F32 = x.copy()
        return y

    def embedding(self, spec: EmbeddingSpec) -> ReferenceEmbedding:
        """Build the token embedding."""
        return ReferenceEmbedding(spec)

    def attention(self, spec: AttentionSpec) -> ReferenceAttention:
        """Build one layer's attention."""
        return ReferenceAttention(spec)

    def ffn(self, spec: FFNSpec) -> ReferenceFFN:
        """Build one layer's FFN."""
        return ReferenceFFN(spec)

    def neuron_ffn(self, spec: NeuronFFNSpec) -> ReferenceNeuronFFN:
        """Build one layer's FFN that is stored by neuron."""
        return ReferenceNeuronFFN(spec)

    def head(self, spec: HeadSpec) -> ReferenceHead:
        """Build the final norm and the output projection."""
        return ReferenceHead(spec)

    def kv_cache(
        self, *, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, type: str
    ) -> ReferenceKVCache:
        """Room for `capacity` positions; `type` is ``f32`` or ``f16``."""
        dtypes: dict[str, DTypeLike] = {"f32": np.float32, "f16": np.float16}
        if type not in dtypes:
            raise HotsetError(
                f"KV cache type {type!r}: the reference backend has f32 and f16; choose one of them"
            )
        return ReferenceKVCache((n_layers, capacity, n_kv_heads, head_dim), dtypes[type])
