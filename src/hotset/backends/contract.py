"""What a backend must offer: the decoder's parts, built once from weights and then only called.

A backend knows nothing of architectures, files or requests. Arrays are float32 and C-contiguous; T is the
number of rows in the call, D the hidden size, V the vocabulary. What flows from part to part is the backend's
own `Array`; tokens, logits and observed neurons are NumPy's on every backend.

A part never changes: what a sequence leaves behind is in its `Sequence`. A row's result does not depend on
the other rows of the call, on the CPU to the bit where weights are quantised.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hotset.core.batch import I32
from hotset.core.config import (
    Activation,
    DeltaNetConfig,
    ExpertsConfig,
    FFNPlan,
    MambaConfig,
    NormKind,
    Recurrent,
    RopeConfig,
    ShortConvConfig,
)
from hotset.core.heads import KvShape, LatentConfig, QueryGrowth
from hotset.formats.tensor import Tensor

F32 = NDArray[np.float32]

Array: TypeAlias = Any
"""Hidden vectors where the backend computes: a NumPy array on the CPU, a torch tensor on a GPU."""

BatchView: TypeAlias = Any
"""A `Batch` as a backend's parts take it, made by `Backend.view`."""


@dataclass(frozen=True)
class Norm:
    """A normalisation: ``weight`` (ones where there is none) and ``bias`` are (n,), D or a head's size."""

    kind: NormKind
    eps: float
    weight: F32
    bias: F32 | None = None


@dataclass(frozen=True)
class Linear:
    """``y = W x + b``: ``weight`` is (out, in) of any readable type, ``bias`` is (out,)."""

    weight: Tensor
    bias: F32 | None = None


@dataclass(frozen=True)
class EmbeddingSpec:
    """Tokens (V, D) times ``scale``, plus row ``position + position_offset`` of ``positions`` (P, D)."""

    tokens: Tensor
    scale: float = 1.0
    positions: Tensor | None = None
    position_offset: int = 0


@dataclass(frozen=True)
class AttentionSpec:
    """``out += post_norm(W_o attention(W_qkv norm(x)))``, grouped-query, causal, with RoPE on q and k.

    ``q`` is (n_heads * head_dim, D), ``k`` and ``v`` are (n_kv_heads * head_dim, D), ``output`` is
    (D, n_heads * head_dim). ``q_norm`` and ``k_norm`` act before RoPE, on every head, or on all heads as one
    vector where they are as long as that.
    """

    norm: Norm
    q: Linear
    k: Linear | None
    """None: keys and values of another layer are read, those with this one's number."""
    v: Linear | None
    """None: values are the keys, before `k_norm` and RoPE."""
    output: Linear
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None = None
    window: int | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    post_norm: Norm | None = None
    gated: bool = False
    """``q`` is twice as long: each head's query is followed by its gate, whose sigmoid multiplies the head's
    result, number by number (Qwen3-Next)."""
    head_gate: Linear | None = None
    """(n_heads, D): each head's result is multiplied by the softplus of its number (Laguna)."""
    sinks: F32 | None = None
    """(n_heads,): one more logit in each head's softmax, without a value (gpt-oss)."""
    v_norm: Norm | None = None
    """Of every head's values."""
    soft_cap: float = 0.0
    """Scores s, scaled, become ``c tanh(s / c)``; 0: they stay (Gemma 2)."""
    growth: QueryGrowth | None = None


@dataclass(frozen=True)
class LatentSpec:
    """``out += W_o y``, y being multi-head latent attention of norm(x) (DeepSeek-V2, arXiv 2405.04434).

    With n = norm(x): ``kv_a`` n is cut into l (c numbers), which `kv_norm` normalises, and k (r), which RoPE
    turns; these are all that is kept of a position. ``q`` n or, where there is a ``q_a``, ``q q_norm(q_a n)``
    is cut into heads, and each head into a (p numbers) and b (r), which RoPE turns. Head h's score of a
    position, and what it gives, summed by the softmax of these scores::

        scale * (a . K_h^T l + b . k)  =  scale * (K_h a . l + b . k)
        V_h l
    """

    norm: Norm
    q_a: Linear | None
    q_norm: Norm | None
    q: Linear
    """(n_heads * (p + r), …)."""
    kv_a: Linear
    """(c + r, D)."""
    kv_norm: Norm
    """Of c numbers."""
    k_b: Tensor
    """K: (n_heads, c, p)."""
    v_b: Tensor
    """V: (n_heads, v, c)."""
    output: Linear
    """(D, n_heads * v)."""
    n_heads: int
    scale: float
    rope: RopeConfig
    shape: LatentConfig


@dataclass(frozen=True)
class DeltaNetSpec:
    """``out += W_out y``, y being the gated delta net of norm(x) (arXiv 2412.06464; Qwen3-Next).

    With n = norm(x), H value heads and d numbers a head: ``qkv`` n (C) goes through a causal convolution over
    `kernel` positions of each channel, then SiLU, and is cut into queries, keys (n_key_heads * d each) and
    values (H * d). Queries and keys are divided by their length, queries by the root of d. For each value
    head with its state S (d keys, d values), beta = sigmoid(``beta`` n) and
    g = ``decay`` * softplus(``alpha`` n + ``dt_bias``)::

        S = S exp(g);  S = S + k (beta (v - S^T k))^T;  o = S^T q

    y is ``out_norm(o) * silu(z n)`` of each head.
    """

    norm: Norm
    qkv: Linear
    z: Linear
    """(H * d, D)."""
    beta: Linear
    """(H, D), like `alpha`."""
    alpha: Linear
    conv: F32
    """(C, kernel), the newest position's factor last."""
    dt_bias: F32
    """(H,), like `decay`, which is negative."""
    decay: F32
    out_norm: Norm
    """Over the d numbers of a head."""
    output: Linear
    """(D, H * d)."""
    shape: DeltaNetConfig


@dataclass(frozen=True)
class ShortConvSpec:
    """``out += W_out (c * y)``, y being a causal convolution of ``b * x`` (LFM2).

    b, c and x are the thirds of ``input`` norm(x), each of D numbers.
    """

    norm: Norm
    input: Linear
    """(3 D, D)."""
    conv: F32
    """(D, kernel), the newest position's factor last."""
    output: Linear
    """(D, D)."""
    shape: ShortConvConfig


@dataclass(frozen=True)
class MambaSpec:
    """``out += W_out y``, y being Mamba-2 of norm(x) (arXiv 2405.21060).

    With n = norm(x), H heads of d values, G groups of keys and queries of s numbers: ``input`` n is cut into
    gates z (H * d), what goes through a causal convolution of each channel and then SiLU, and steps (H). The
    convolution's results are values (H * d), keys (G * s) and queries (G * s). For each head with its state
    S (s keys, d values), and step t = softplus(step + ``dt_bias``)::

        S = S exp(t decay) + k (t v)^T;  o = S^T q + skip v

    y is ``out_norm(o * silu(z))``, each group's values normalised together.
    """

    norm: Norm
    input: Linear
    """(2 H d + 2 G s + H, D)."""
    conv: F32
    """(H d + 2 G s, kernel), the newest position's factor last."""
    conv_bias: F32
    dt_bias: F32
    """(H,), like `decay`, which is negative, and `skip`."""
    decay: F32
    skip: F32
    out_norm: Norm
    """Its weights are (H * d,)."""
    output: Linear
    """(D, H * d)."""
    shape: MambaConfig


RecurrentSpec: TypeAlias = DeltaNetSpec | ShortConvSpec | MambaSpec


@dataclass(frozen=True)
class FFNSpec:
    """``out += post_norm(W_down h)``, ``h = act(W_gate n) * (W_up n)`` or, without a gate, ``act(W_up n)``.

    ``n = norm(x)``; gate and up are (F, D), down is (D, F).
    """

    norm: Norm
    gate: Linear | None
    up: Linear
    down: Linear
    activation: Activation
    post_norm: Norm | None = None


@dataclass(frozen=True)
class NeuronFFNSpec:
    """An FFN stored by neuron: as `FFNSpec`, but ``down_t`` is (F, D), its row j belonging to neuron j.

    ``predictor`` has the matrices of a low-rank score, (r, D) and (F, r); otherwise it is empty.
    """

    norm: Norm
    gate: Linear | None
    up: Linear
    down_t: Linear
    activation: Activation
    plan: FFNPlan
    predictor: tuple[Linear, ...] = ()
    post_norm: Norm | None = None


@dataclass(frozen=True)
class SharedExpertSpec:
    """The expert that every row uses: gate and up (Fs, D), down (D, Fs).

    With a ``switch`` (1, D) its result is multiplied by ``sigmoid(switch n)``.
    """

    gate: Linear | None
    up: Linear
    down: Linear
    switch: Linear | None = None


@dataclass(frozen=True)
class ExpertsSpec:
    """``out += post_norm(sum of w_e expert_e(n) over the row's experts + shared(n))``, ``n = norm(x)``.

    The weights of E experts lie in one tensor: gate and up (E, F, D), down (E, D, F), or, with a `plan`,
    stored by neuron, (E, F, D); their biases are (E, F) and (E, D). Each is an FFN as `FFNSpec` says.
    The router's logits are ``router n`` (E), in float32; `maths.route` says what follows from them.
    """

    norm: Norm
    router: Linear
    gate: Linear | None
    up: Linear
    down: Linear
    activation: Activation
    shape: ExpertsConfig
    selection_bias: F32 | None = None
    """(E,): added to an expert's probability when experts are selected, but not in its weight."""
    shared: SharedExpertSpec | None = None
    plan: FFNPlan | None = None
    """How neurons inside the selected experts are chosen; None: all are computed."""
    post_norm: Norm | None = None
    router_norm: Norm | None = None
    """Of what the router reads, where it is not `norm`."""
    factors: F32 | None = None
    """(E,): positive, on each selected expert's weight."""
    beside: FFNSpec | None = None
    """An ordinary FFN of x: ``out += joined_norm(ffn(x) + the mixture)`` (Gemma 4)."""
    joined_norm: Norm | None = None


@dataclass(frozen=True)
class HeadSpec:
    """``logits = W norm(x)``, W being (V, D)."""

    norm: Norm
    output: Linear
    soft_cap: float = 0.0
    """Logits x become ``c tanh(x / c)``; 0: they stay."""


@dataclass(frozen=True)
class LayerInputsSpec:
    """Each layer's own embedding of a token, numbers e (L, P), for x, its hidden vector (D)::

    e = (rows(token) * root(P) + norm(project x / root(D))) / root(2)
    """

    rows: Tensor
    """(V, L * P)."""
    project: Linear
    """(L * P, D)."""
    norm: Norm
    """Over the P numbers of a layer."""
    layers: int


@dataclass(frozen=True)
class LayerInputSpec:
    """``out += post_norm(up (gelu_tanh(gate x) * e))``: gate is (P, D), up (D, P)."""

    gate: Linear
    up: Linear
    post_norm: Norm


@dataclass(frozen=True)
class StateShape:
    """What a model's layers keep of a sequence."""

    n_layers: int
    """Layers with keys and values, by their numbers in `Backend.attention`."""
    n_kv_heads: int
    head_dim: int
    cutoffs: tuple[float | None, ...] = ()
    """Where each layer's chooser starts, by its number in `Backend.neuron_ffn`; None: it has none."""
    kept: tuple[float, ...] = ()
    """The share of the activation that its audits keep; 0, or no number: nothing is audited."""
    recurrent: tuple[Recurrent, ...] = ()
    """Layers with a recurrent state, by their numbers in `Backend.recurrent`."""
    own: tuple[KvShape, ...] = ()
    """What each layer keeps, where layers differ or values are not kept apart; otherwise empty."""

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """What is kept of a position by each layer that has keys and values."""
        return self.own or (KvShape(self.n_kv_heads, self.head_dim),) * self.n_layers


class Embedding(Protocol):
    """Token ids to hidden vectors."""

    def forward(self, tokens: I32, positions: I32) -> Array:
        """Embed tokens (T,) at positions (T,): (T, D)."""


class Mixer(Protocol):
    """What mixes positions in one layer: attention, or a layer with a recurrent state."""

    def forward(self, x: Array, out: Array, view: BatchView) -> None:
        """Add the mixture of x (T, D) to out (T, D), which may be x itself.

        Each span's rows see their own sequence, and of that what was there and what the span adds. Attention
        writes their keys and values at positions ``sequence.length + 0 .. count - 1``; a recurrent layer
        writes the state after them beside the present one, and `Sequence.advance` makes that the present one.
        So the same batch may be computed again if it was not advanced.
        """


class FFN(Protocol):
    """One layer's feed-forward network."""

    def forward(self, x: Array, out: Array, view: BatchView) -> None:
        """Add the FFN of x (T, D) to out (T, D), which may be x itself.

        An FFN stored by neuron computes what its plan chooses for each row, by the row's own sequence; in
        lossless spans it leaves out nothing but zeros.
        """

    def neurons(self, x: Array, gate: F32, h: F32) -> None:
        """Compute every neuron of x (T, D), for profiles and training.

        Written are the activation's input to ``gate`` (T, F), which is up's product where there is no gate,
        and the neurons' values, which are the input of down, to ``h`` (T, F).
        """


class Experts(FFN, Protocol):
    """One layer's mixture of experts."""

    def route(self, x: Array) -> Array:
        """The router's logits (T, E) of x (T, D), which is the layer's input: for early routers."""

    def select(self, x: Array, logits: Array | None = None) -> Array:
        """Each row's weights (T, E), zero for the experts that it does not select; of x (T, D) or logits.

        x is what the router reads: the FFN's input, or the layer's, for early routers.
        """

    def add(self, x: Array, out: Array, weights: Array) -> None:
        """Add to out what `forward` does, of the experts whose weights (T, E) are positive, or NaN."""

    def forward(self, x: Array, out: Array, view: BatchView, logits: Array | None = None) -> None:
        """Add the experts' result of x (T, D) to out, which may be x itself; `logits` are an early router's.

        A row reads its own experts only, and they are summed in the order of their numbers.
        """


@runtime_checkable
class CountsFired(Protocol):
    """Experts that can say how many of their neurons fire, for profiles."""

    def fired(self, x: F32, weights: F32) -> F32:
        """How many neurons of each expert are not zero (T, E), of those that have weights (T, E)."""


class Head(Protocol):
    """Hidden vectors to logits."""

    def forward(self, x: Array) -> F32:
        """Logits (T, V) of x (T, D)."""

    def normed(self, x: Array) -> F32:
        """What logits are products of (T, D): x (T, D), normalised, times the factor on logits."""


class LayerInputs(Protocol):
    """Each layer's own embedding of the tokens."""

    def forward(self, tokens: I32, x: Array) -> Array:
        """Numbers (T, L, P) of tokens (T,) with their hidden vectors x (T, D)."""


class LayerInput(Protocol):
    """What one layer's own embedding adds at its end."""

    def forward(self, x: Array, e: Array, out: Array) -> None:
        """Add it to out (T, D), which may be x (T, D); e is (T, P), a view of what `LayerInputs` gave."""
