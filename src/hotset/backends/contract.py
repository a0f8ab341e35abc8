"""What a backend must offer: the decoder's four parts, built once from weights and then only called.

A backend knows nothing of architectures, files or requests. Arrays are float32 and C-contiguous; T is the
number of tokens in the call, D the hidden size, V the vocabulary. What flows from part to part is the
backend's own `Array`; tokens, logits and observed neurons are NumPy's on every backend.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotset.core.config import Activation, FFNPlan, NormKind, RopeConfig
from hotset.formats.tensor import Tensor

F32 = NDArray[np.float32]

Array: TypeAlias = Any
"""Hidden vectors where the backend computes: a NumPy array on the CPU, a torch tensor on a GPU."""


@dataclass(frozen=True)
class Norm:
    """A normalisation: ``weight`` and ``bias`` are (n,), n being the hidden size or a head's size."""

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
    (D, n_heads * head_dim). ``q_norm`` and ``k_norm`` act on every head before RoPE.
    """

    norm: Norm
    q: Linear
    k: Linear
    v: Linear
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
class NeuronCounts:
    """What a `NeuronFFN` has done, summed over tokens in decoding.

    That is, not in calls of more than `DENSE_TOKENS`, nor in those with ``dense``: a prompt's tokens share
    the neurons that are read for any of them, which says nothing of one token's.
    """

    tokens: int
    read: int
    """Neurons whose row of down was read."""
    fired: int
    """Of these, neurons that were not zero."""


DENSE_TOKENS = 8
"""In calls of more tokens than this, every neuron is computed: together they need nearly all."""


@dataclass(frozen=True)
class HeadSpec:
    """``logits = W norm(x)``, W being (V, D)."""

    norm: Norm
    output: Linear


class KVCache(Protocol):
    """Keys and values of one sequence, for every layer."""

    @property
    def length(self) -> int:
        """Positions filled so far."""

    @property
    def capacity(self) -> int:
        """Positions there is room for."""

    def advance(self, count: int) -> None:
        """Count `count` more positions as filled, once every layer has written them."""

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on (0 <= length <= self.length)."""


class Embedding(Protocol):
    """Token ids to hidden vectors."""

    def forward(self, tokens: NDArray[np.int32], position: int) -> Array:
        """Embed (T,) tokens, the first at `position`: (T, D)."""


class Attention(Protocol):
    """One layer's attention."""

    def forward(self, x: Array, out: Array, kv: KVCache, layer: int) -> None:
        """Add the attention of x (T, D) to out (T, D), which may be x itself.

        The tokens stand at positions ``kv.length + 0 .. T - 1``; their keys and values are written there.
        """


class FFN(Protocol):
    """One layer's feed-forward network."""

    def forward(self, x: Array, out: Array, dense: bool = False) -> None:
        """Add the FFN of x (T, D) to out (T, D), which may be x itself.

        With `dense` only neurons that are exactly zero are left out, whatever the layer's plan is.
        """

    def neurons(self, x: Array, gate: F32, h: F32) -> None:
        """Compute every neuron of x (T, D), for profiles and training.

        Written are the activation's input to ``gate`` (T, F), which is up's product where there is no gate,
        and the neurons' values, which are the input of down, to ``h`` (T, F).
        """


class NeuronFFN(FFN, Protocol):
    """An FFN stored by neuron, which computes only some neurons for each token."""

    cutoff: float
    """A neuron is computed where its score is at least this; an audit may move it."""

    @property
    def recall_seen(self) -> float:
        """Share of the firing neurons that were predicted, a running mean over audits; NaN without any."""

    def counts(self) -> NeuronCounts:
        """What was done since the FFN was built."""


class Head(Protocol):
    """Hidden vectors to logits."""

    def forward(self, x: Array) -> F32:
        """Logits (T, V) of x (T, D)."""


class Backend(Protocol):
    """Builds the parts. Tensors may be released once their part is built."""

    name: str

    def copy(self, x: Array) -> Array:
        """A copy of one of its arrays."""

    def embedding(self, spec: EmbeddingSpec) -> Embedding:
        """Build the token embedding."""

    def attention(self, spec: AttentionSpec) -> Attention:
        """Build one layer's attention."""

    def ffn(self, spec: FFNSpec) -> FFN:
        """Build one layer's FFN."""

    def neuron_ffn(self, spec: NeuronFFNSpec) -> NeuronFFN:
        """Build one layer's FFN that is stored by neuron."""

    def head(self, spec: HeadSpec) -> Head:
        """Build the final norm and the output projection."""

    def kv_cache(self, *, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, type: str) -> KVCache:
        """Room for `capacity` positions; `type` is ``f16``, ``q8_0`` or ``f32``."""
