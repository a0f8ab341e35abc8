"""What a model is, in numbers: everything the decoder needs to know, and nothing about files or backends."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from hotset.core.heads import HeadsConfig, KvShape, LatentConfig, QueryGrowth


class Activation(str, Enum):
    """The FFN's non-linearity. In a gated FFN the neuron is ``act(gate) * up``, otherwise ``act(up)``."""

    RELU = "relu"
    """ReLU; in a gated FFN this is ReGLU."""
    DRELU = "drelu"
    """ReLU on gate and on up (Bamboo, TurboSparse; arXiv 2406.05955). Gated only."""
    RELU2 = "relu2"
    """Squared ReLU (Nemotron, Primer; arXiv 2109.08668)."""
    SILU = "silu"
    GELU = "gelu"
    """Exact GELU, by the error function."""
    GELU_TANH = "gelu_tanh"
    """The tanh approximation of GELU (Gemma)."""
    SWIGLU_CLAMPED = "swiglu_clamped"
    """gpt-oss: ``g sigmoid(1.702 g) (u + 1)``, g = min(gate, 7), u = up clamped to -7 … 7. Gated only."""

    @property
    def zero_producing(self) -> bool:
        """Whether the activation is exactly zero for negative input, so that `exact` skipping is lossless."""
        return self in (Activation.RELU, Activation.DRELU, Activation.RELU2)

    @property
    def gated_only(self) -> bool:
        """Whether it is one of gate and up together."""
        return self in (Activation.DRELU, Activation.SWIGLU_CLAMPED)


class NormKind(str, Enum):
    """How hidden vectors are normalised."""

    RMS = "rms"
    LAYER = "layer"
    NONE = "none"
    """They are not: families whose norms come after attention and FFN have none before (OLMo 2)."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (RoPE, arXiv 2104.09864), resolved to numbers.

    ``inverse_frequencies`` has ``dim / 2`` entries, in radians per position, with any scaling (linear,
    Llama 3, YaRN) already in; ``magnitude`` multiplies cosine and sine (YaRN's attention factor).
    """

    dim: int
    """Numbers of each head that are rotated, from its start; even, at most the head's size."""
    interleaved: bool
    """Pairs are (2i, 2i + 1) as in GGUF's Llama files, else (i, i + dim / 2) as in Hugging Face's."""
    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0
    long_frequencies: tuple[float, ...] = ()
    """Where there are any: those of sequences with room for more than `long_from` positions (Phi-3)."""
    long_from: int = 0

    def frequencies(self, capacity: int) -> tuple[float, ...]:
        """Those of a sequence with so much room."""
        return (
            self.long_frequencies
            if self.long_frequencies and capacity > self.long_from
            else (self.inverse_frequencies)
        )


class Way(str, Enum):
    """Which neurons of an FFN are computed for a token."""

    DENSE = "dense"
    """All."""
    EXACT = "exact"
    """Those that are not exactly zero; only for zero-producing activations. Equal to dense."""
    THRESHOLD = "threshold"
    """Those whose score, computed exactly, reaches the cut-off."""
    PREDICTOR = "predictor"
    """Those whose predicted score reaches the cut-off."""

    @property
    def approximate(self) -> bool:
        """Whether neurons may be left out that are not zero."""
        return self in (Way.THRESHOLD, Way.PREDICTOR)


class Score(str, Enum):
    """The number that a neuron's cut-off is held against. ``n`` is the FFN's normalised input."""

    GATE = "gate"
    """|act(gate)| (CATS, arXiv 2404.08763); saves the neuron's rows of up and down. `Way.THRESHOLD`."""
    DOWN = "down"
    """|h| times the length of the neuron's row of down; saves that row. `Way.THRESHOLD`."""
    LOW_RANK = "low_rank"
    """``fc2 fc1 n``. `Way.PREDICTOR`, like all that follow."""
    LOW_RANK_RELU = "low_rank_relu"
    """``fc2 relu(fc1 n)`` (Deja Vu, arXiv 2310.17157; PowerInfer's files)."""
    GATE_Q4 = "gate_q4"
    """A 4-bit copy of the gate (of up, where there is no gate), made while loading, times ``n``."""
    GATE_Q2 = "gate_q2"
    """The same with 2 bits."""


DEFAULT_KEPT = 0.99
"""Share of the activation that predictors are made and audited for."""


@dataclass(frozen=True)
class FFNPlan:
    """How one layer, stored by neuron, chooses the neurons that it computes for a token in decoding."""

    way: Way
    score: Score | None = None
    cutoff: float = 0.0
    """A neuron is computed where its score is at least this."""
    kept: float = 0.0
    """Share of the activation that audits keep by moving the cut-off, which is where they start; 0: it stays.
    The activation is the sum of |h| over a token's neurons."""
    raw_input: bool = False
    """The predictor reads the FFN's input before its norm, as in PowerInfer's files."""


class Gating(str, Enum):
    """How a router's logits become the weights of the experts that it selects."""

    SOFTMAX = "softmax"
    """Softmax over all experts."""
    SIGMOID = "sigmoid"
    """Each expert's own sigmoid."""
    SELECTED = "selected"
    """Softmax over the selected experts alone."""


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts: `used` of `count` FFNs compute a token, as a router says (arXiv 1701.06538)."""

    count: int
    used: int
    size: int
    """Neurons of one expert."""
    shared_size: int = 0
    """Neurons of the expert that every token uses; 0: there is none."""
    gating: Gating = Gating.SOFTMAX
    normalised: bool = True
    """The selected experts' weights are divided by their sum."""
    scale: float = 1.0
    """Factor on the weights."""
    groups: int = 1
    groups_used: int = 1
    """Experts are selected from so many of so many groups, those whose two best sum highest (DeepSeek-V3)."""
    early: bool = False
    """The router reads the layer's input, before attention and without a norm (SmallThinker)."""


@dataclass(frozen=True)
class SumsShape:
    """Sums over all positions that a recurrent layer keeps: a matrix for each value head."""

    n_key_heads: int = 0
    n_value_heads: int = 0
    """0: there are none."""
    key_dim: int = 1
    value_dim: int = 1

    @property
    def size(self) -> int:
        """Numbers of all sums."""
        return self.n_value_heads * self.key_dim * self.value_dim


@dataclass(frozen=True)
class DeltaNetConfig:
    """A gated delta net (arXiv 2412.06464): a layer with a state of fixed size instead of keys and values."""

    n_key_heads: int
    n_value_heads: int
    """A multiple of `n_key_heads`."""
    head_dim: int
    """Of keys and of values."""
    kernel: int
    """Positions that the convolution before it reaches over, the token itself included."""
    tiled: bool
    """Value head h reads key head ``h mod n_key_heads`` (Qwen3.5's GGUF files), else
    ``h // (n_value_heads / n_key_heads)``."""

    @property
    def channels(self) -> int:
        """Numbers of a position that the convolution runs over: queries, keys and values."""
        return (2 * self.n_key_heads + self.n_value_heads) * self.head_dim

    @property
    def sums(self) -> SumsShape:
        """Shape of what a sequence keeps of this layer beside its convolution's inputs."""
        return SumsShape(self.n_key_heads, self.n_value_heads, self.head_dim, self.head_dim)

    @property
    def state_size(self) -> int:
        """Numbers of the state: the heads' sums, and what the convolution reaches back to."""
        return self.sums.size + (self.kernel - 1) * self.channels


@dataclass(frozen=True)
class ShortConvConfig:
    """A gated short convolution (LFM2): a layer that reaches back over a few positions."""

    channels: int
    """The hidden size."""
    kernel: int
    """Positions that it reaches over, the token itself included."""

    @property
    def sums(self) -> SumsShape:
        """Shape of what a sequence keeps of this layer beside its convolution's inputs."""
        return SumsShape()

    @property
    def state_size(self) -> int:
        """Numbers of the state: what it reaches back to."""
        return (self.kernel - 1) * self.channels


@dataclass(frozen=True)
class MambaConfig:
    """Mamba-2 (arXiv 2405.21060): a sum over all positions for each head, which fades with time."""

    n_groups: int
    """Groups of heads that share their keys and queries (B and C)."""
    n_heads: int
    """A multiple of `n_groups`."""
    head_dim: int
    """Of values."""
    state_dim: int
    """Of keys and queries."""
    kernel: int
    """Positions that the convolution before it reaches over, the token itself included."""

    @property
    def values(self) -> int:
        """Numbers of all heads' values."""
        return self.n_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Numbers of a position that the convolution runs over: values, keys and queries."""
        return self.values + 2 * self.n_groups * self.state_dim

    @property
    def sums(self) -> SumsShape:
        """Shape of what a sequence keeps of this layer beside its convolution's inputs."""
        return SumsShape(self.n_groups, self.n_heads, self.state_dim, self.head_dim)

    @property
    def state_size(self) -> int:
        """Numbers of the state: the heads' sums, and what the convolution reaches back to."""
        return self.sums.size + (self.kernel - 1) * self.channels


Recurrent: TypeAlias = DeltaNetConfig | ShortConvConfig | MambaConfig
"""A layer with a state of fixed size instead of keys and values. Each has a convolution over `channels`
numbers and `kernel` positions."""


@dataclass(frozen=True)
class LayerConfig:
    """Where one layer differs from its neighbours."""

    rope: RopeConfig | None
    window: int | None = None
    """Attention reaches back over this many positions, the token itself included; None: over all."""
    ffn: FFNPlan | None = None
    """None: the FFN is not stored by neuron, and all its neurons are computed."""
    experts: ExpertsConfig | None = None
    """None: one FFN, `ModelConfig.ffn_size` neurons wide."""
    recurrent: Recurrent | None = None
    """None: the layer mixes positions by attention, if at all."""
    attention: bool = True
    """False: without a recurrent state, the layer has an FFN alone."""
    feeds: bool = True
    """False: the layer has no FFN."""
    heads: HeadsConfig | None = None
    """None: those of `ModelConfig`."""
    ffn_size: int | None = None
    """None: `ModelConfig.ffn_size`."""
    kv_from: int | None = None
    """Number of the earlier layer whose keys and values it reads; None: it has its own."""
    beside: bool = False
    """The layer has an ordinary FFN beside its mixture, with norms of its own (Gemma 4)."""
    scale: float = 1.0
    """Factor on what the layer gives, its input included."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape and options. Sizes count numbers (hidden, head, FFN) or tokens (context)."""

    architecture: str
    vocab_size: int
    context_length: int
    hidden_size: int
    ffn_size: int
    """Neurons of the layers' FFNs that are no mixtures; 0: all are."""
    n_heads: int
    n_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    activation: Activation
    gated: bool
    norm: NormKind
    norm_eps: float
    parallel: bool = False
    """Attention and FFN read the same input and are added together (Falcon), else one after the other."""
    attention_scale: float = 0.0
    """Factor on q.k; 0 means ``head_dim ** -0.5``."""
    embedding_scale: float = 1.0
    """Factor on the token embedding (Gemma: the square root of the hidden size)."""
    gated_attention: bool = False
    """Attention's results are multiplied by the sigmoid of gates, as `AttentionSpec.gated` says."""
    position_offset: int = 0
    """Row of ``position_embd.weight`` for position 0 (OPT: 2); used only where that tensor exists."""
    residual_scale: float = 1.0
    """Factor on what attention and FFN add (Granite)."""
    logit_scale: float = 1.0
    """Factor on the logits."""
    logit_soft_cap: float = 0.0
    """Logits x become ``c tanh(x / c)``, after `logit_scale`; 0: they stay."""
    attention_soft_cap: float = 0.0
    """The same of q.k times `attention_scale`."""
    query_growth: QueryGrowth | None = None
    latent: LatentConfig | None = None
    """All layers' attention is of this kind; their one key/value head is what is kept of a position."""
    value_norm: bool = False
    """Values are normalised by head, without a weight (Gemma 4)."""
    layer_input: int = 0
    """Numbers of a token's own embedding for each layer (Gemma 4 E2B); 0: there is none."""

    @property
    def n_layers(self) -> int:
        """How many layers the decoder has."""
        return len(self.layers)

    def units(self, layer: int) -> int:
        """How many units a layer's FFN is placed by: experts, or neurons where it is no mixture."""
        if not self.layers[layer].feeds:
            return 0
        experts = self.layers[layer].experts
        return experts.count if experts else self.neurons(layer)

    def neurons(self, layer: int) -> int:
        """Neurons of a layer's FFN that is no mixture."""
        own = self.layers[layer].ffn_size
        return self.ffn_size if own is None else own

    def heads(self, layer: int) -> HeadsConfig:
        """Heads of a layer's attention."""
        return self.layers[layer].heads or HeadsConfig(self.n_heads, self.n_kv_heads, self.head_dim)

    def kv_shape(self, layer: int) -> KvShape:
        """What a layer's attention keeps of a position."""
        heads = self.heads(layer)
        return KvShape(heads.n_kv_heads, heads.head_dim, values=self.latent is None)

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that keep keys and values of their own."""
        own = (x.attention and not x.recurrent and x.kv_from is None for x in self.layers)
        return tuple(i for i, keeps in enumerate(own) if keeps)

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same heads and FFN, and nothing but attention, norms and FFN."""
        plain = (None, None, None, False, 1.0)
        return not self.layer_input and all(
            (x.heads, x.ffn_size, x.kv_from, x.beside, x.scale) == plain
            and x.feeds
            and (x.attention or x.recurrent)
            for x in self.layers
        )

    @property
    def profiled_units(self) -> int:
        """Units of a layer that a profile counts: those of mixtures, where there are any."""
        return max((layer.experts.count for layer in self.layers if layer.experts), default=self.ffn_size)

    @property
    def computed_neurons(self) -> int:
        """Neurons that a token's FFN has in a layer stored by neuron: in a mixture, those of its experts."""
        shapes = (layer.experts for layer in self.layers)
        return max((shape.used * shape.size for shape in shapes if shape), default=self.ffn_size)

    @property
    def mixture(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(layer.experts for layer in self.layers)

    @property
    def recurrent(self) -> bool:
        """Whether any layer keeps a state that cannot go back to an earlier position."""
        return any(layer.recurrent for layer in self.layers)


@dataclass(frozen=True)
class LayerPlacement:
    """What of one layer lies on the device; the rest is the host's."""

    attention: bool
    """Attention, with its part of the KV cache."""
    hot: int
    """The FFN's units ``[:hot]``, the hottest: neurons, or experts of a mixture. 0: none."""
    experts: tuple[int, ...] | None = None
    """The numbers of these experts, where they are not the first `hot`."""
    gates: bool = False
    """Of an FFN that is split and leaves out zeros alone: the gates of all neurons, which tell what fires."""


@dataclass(frozen=True)
class Placement:
    """What lies on the device (GPU or stand-in). The token embedding is always the host's."""

    layers: tuple[LayerPlacement, ...]
    head: bool
    """The final norm and the output projection."""

    def fits(self, config: ModelConfig) -> bool:
        """Whether this is a placement of a model of that shape; layers that share keys have one place."""
        return len(self.layers) == config.n_layers and all(
            0 <= place.hot <= config.units(i)
            and (layer.kv_from is None or place.attention == self.layers[layer.kv_from].attention)
            for i, (place, layer) in enumerate(zip(self.layers, config.layers, strict=True))
        )
