"""What a row of the table of architectures can say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from hotset.core.config import Activation, Gating, NormKind

SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "token_embd": "VD",
        "position_embd": "PD",
        "output_norm": "D",
        "output": "VD",
        "attn_norm": "D",
        "attn_norm_2": "D",
        "attn_q": "QD",
        "attn_k": "KD",
        "attn_v": "KD",
        "attn_output": "DQ",
        "attn_q_norm": "H",
        "attn_k_norm": "H",
        "attn_sinks": "A",
        "attn_q_a": "rD",
        "attn_q_a_norm": "r",
        "attn_q_b": "qr",
        "attn_kv_a_mqa": "kD",
        "attn_kv_a_norm": "c",
        "attn_k_b": "Acn",
        "attn_v_b": "Avc",
        "post_attention_norm": "D",
        "ffn_norm": "D",
        "ffn_gate": "FD",
        "ffn_up": "FD",
        "ffn_down": "DF",
        "ffn_gate_inp": "ED",
        "exp_probs_b": "E",
        "ffn_gate_exps": "EXD",
        "ffn_up_exps": "EXD",
        "ffn_down_exps": "EDX",
        "ffn_gate_inp_shexp": "1D",
        "ffn_gate_shexp": "YD",
        "ffn_up_shexp": "YD",
        "ffn_down_shexp": "DY",
        "post_ffw_norm": "D",
        "post_ffw_norm_1": "D",
        "post_ffw_norm_2": "D",
        "pre_ffw_norm_2": "D",
        "ffn_gate_inp_scale": "D",
        "ffn_down_exps_scale": "E",
        "per_layer_token_embd": "VJ",
        "per_layer_model_proj": "JD",
        "per_layer_proj_norm": "L",
        "inp_gate": "LD",
        "proj": "DL",
        "post_norm": "D",
        "layer_output_scale": "1",
    }
)
"""Every tensor's ``.weight`` in NumPy order; a ``.bias`` lacks the last of several dimensions.

V vocabulary, P positions, D hidden, F FFN, H head, A heads, Q = heads x head, K = key/value heads x head.
E experts, X neurons of an expert, Y of the shared one. ``exp_probs_b`` is a bias alone.
Of latent attention: r numbers that queries are made from, q of all queries, k kept of a position, c of them
the latent vector's, n of a head without RoPE, v of its value, o of all values.
L numbers of a layer's own embedding of a token, J of all layers'.
"""

OF_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"})
"""Tensors of layers with attention, where others have none."""
OF_LOW_RANK = frozenset({"attn_q_a", "attn_q_a_norm", "attn_q_b"})
"""Those in place of ``attn_q`` where queries are made from fewer numbers."""
OF_RECURRENT = frozenset(
    {
        *("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha", "ssm_conv1d"),
        *("ssm_dt", "ssm_a", "ssm_norm", "ssm_out"),
        *("ssm_in", "ssm_d", "shortconv_in", "shortconv_conv", "shortconv_out"),
    }
)
"""Those of layers with a recurrent state, in families that have such."""
OF_LAYER_INPUTS = frozenset(
    {"per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm", "inp_gate", "proj", "post_norm"}
)
"""Those of models whose layers have embeddings of their own."""
OF_DENSE = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
"""Tensors of layers with one FFN, where others are mixtures."""
OF_EXPERTS = frozenset(
    {
        *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "exp_probs_b"),
        *("ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
    }
)
"""Those of mixtures."""

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "relu": Activation.RELU,
        "drelu": Activation.DRELU,
        "relu2": Activation.RELU2,
        "silu": Activation.SILU,
        "swish": Activation.SILU,
        "gelu": Activation.GELU,
        "gelu_python": Activation.GELU,
        "gelu_new": Activation.GELU_TANH,
        "gelu_fast": Activation.GELU_TANH,
        "gelu_accurate": Activation.GELU_TANH,
        "gelu_tanh": Activation.GELU_TANH,
        "gelu_pytorch_tanh": Activation.GELU_TANH,
        "gelu_python_tanh": Activation.GELU_TANH,
    }
)
"""Activations by Hugging Face's names (``ACT2FN``); ``drelu`` and ``gelu_tanh`` are our own."""


SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
"""Of attention's scores and of logits, by GGUF's keys and config.json's."""


class Windows(Enum):
    """Which layers attend only to a window of the last tokens."""

    NONE = "none"
    ALL = "all"
    LATE = "late"
    """Those from ``max_window_layers`` on (Qwen)."""
    PATTERN = "pattern"
    """All but the last of every `Architecture.window_period` (Gemma 3, gpt-oss)."""
    FIRST_FULL = "first full"
    """All but the first of every `Architecture.window_period` (SmallThinker)."""


@dataclass(frozen=True)
class Mixture:
    """What a family's mixtures of experts are like, where its files do not say."""

    gating: Gating = Gating.SOFTMAX
    normalised: bool = True
    gating_if_biased: Gating | None = None
    """That of files whose experts are selected with a bias, where it is another."""
    averaged: bool = False
    """The shared expert's result and the others' are averaged instead of added (Cohere)."""
    maybe_shared: bool = False
    """Some of the family's models have an expert that every token uses, others none."""
    early: bool = False
    """The router reads before attention, as `ExpertsConfig.early` says."""
    beside: bool = False
    """Hugging Face's config.json has ``enable_moe_block``."""
    hf_transposed: bool = False
    """Hugging Face's stacks of experts are (E, in, out), and columns of gate and up alternate; or they are in
    MXFP4, and rows alternate (gpt-oss)."""


@dataclass(frozen=True)
class Architecture:
    """One row of the table. Tensor names are GGUF's, without ``blk.N.`` and ``.weight``."""

    name: str
    """GGUF's ``general.architecture``; the first row of a name is the one a GGUF file gets."""
    model_types: tuple[str, ...]
    """``model_type`` in Hugging Face's config.json."""
    activation: Activation
    """Where the file does not say."""
    tensors: Mapping[str, str]
    """Our name -> Hugging Face's module, ``{}`` being the layer and ``*`` any expert; alternatives are
    separated by ``|``. A stack of all experts has no suffix there (``gate_up_proj``)."""
    experts: Mixture | None = None
    """None: each layer has one FFN."""
    shapes: Mapping[str, str] = field(default_factory=dict)
    """Tensors whose shape is another than `SHAPES` says."""
    activations: Mapping[str, Activation] = field(default_factory=lambda: ACTIVATIONS)
    norm: NormKind = NormKind.RMS
    norm_biases: bool = True
    """LayerNorms have a bias."""
    rms_where_stated: bool = False
    """Norms are RMS where files state an epsilon of such, whatever `norm` says."""
    parallel: bool = False
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """config.json's flag -> linear layers that then have a bias."""
    maybe_biased: bool = False
    """GGUF files may lack these biases, though `hf_defaults` has the flag (GLM-4 32B)."""
    hf_flags: Mapping[str, str] = field(default_factory=dict)
    """config.json's flag -> tensor of layers that is then there, and only then."""
    optional: frozenset[str] = frozenset({"output"})
    """Tensors that a model may lack. Without ``output`` the token embedding takes its place."""
    fused_qkv: bool = False
    """Files hold ``attn_qkv``: q, k, v."""
    hf_qkv_by_head: bool = False
    """Hugging Face's is by key/value head (queries, key, value)."""
    fused_gate_up: bool = False
    """Files hold gate and up as one: GGUF's ``ffn_up``, Hugging Face's ``ffn_gate_up``."""
    norm_weight_plus_one: bool = False
    """Hugging Face's files store the norms' weights minus one (GGUF's never do)."""
    embedding_scaled: bool = False
    """The token embedding is multiplied by the square root of the hidden size."""
    multipliers: bool = False
    """Files state factors of embedding, residuals and attention, and a divisor of logits (Granite)."""
    growing_queries: bool = False
    """Files may state a `QueryGrowth` (Ministral 3)."""
    logit_factor: bool = False
    """Files state a factor on logits (Cohere)."""
    soft_caps: tuple[str, ...] = ()
    """Keys of soft caps that files may state: some of `SOFT_CAPS`."""
    positions: bool = True
    """False: attention is told none (Nemotron-H)."""
    attention_scale: float = 0.0
    """Factor on q.k where files state none; 0: ``head_dim ** -0.5``."""
    value_norm: bool = False
    """Values are normalised, as `ModelConfig.value_norm` says."""
    by_layer: bool = False
    """Heads, their size and the FFN's may be another in each layer, and layers may share keys and values."""
    position_offset: int = 0
    """Row of ``position_embd`` for position 0, where positions are learned instead of RoPE."""
    gated_attention: bool = False
    """``attn_q`` holds a gate after each head's query."""
    gguf_tiled: bool = False
    """A delta net's value heads lie in GGUF so that head h reads key head ``h mod n_key_heads``."""
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    """GGUF's name of a tensor, where ours is another -> ours."""
    gguf_tokenizer: Mapping[str, str] = field(default_factory=dict)
    """What a file with merges says of its tokenizer's model -> what it means (Ollama's)."""
    gguf_rope_interleaved: bool = False
    """Pairs in GGUF's q and k rows are (2i, 2i + 1)."""
    hf_rope_interleaved: bool = False
    """So are they in Hugging Face's files."""
    rope_period: int = 0
    """The last of so many layers has no RoPE; 0: all have it (SmolLM3)."""
    full_without_rope: bool = False
    """Where there is a window, layers that attend to all have no RoPE."""
    gguf_aliases: tuple[str, ...] = ()
    """Other names of the architecture in GGUF (Ollama's)."""
    windows: Windows = Windows.NONE
    window_period: int = 6
    local_rope_theta: float | None = None
    """RoPE's base in windowed layers, unscaled, where it differs (default)."""
    local_rope_plain: bool = False
    """Windowed layers have the same base, but unscaled (OLMo 3)."""
    gguf_hidden_scaled_depth: int | None = None
    """A GGUF model this deep scales q.k by (hidden / heads) ** -0.5; GGUF has no key for it (Gemma 3 27B)."""
    gguf_also: Mapping[str, str] = field(default_factory=dict)
    """llama.cpp's name of a GGUF key, the architecture's prefix left out -> Ollama's."""
    gguf_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of absent GGUF keys (Ollama's converter leaves out a family's defaults)."""
    gguf_depth_defaults: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """More of them, for models with so many layers."""
    gguf_pre: Mapping[str, str] = field(default_factory=dict)
    """What a file says of its pre-tokenizer -> what it means (Ollama's)."""
    yarn_rounded: bool = True
    """GGUF's YaRN begins and ends at whole dimensions."""
    default_pre: Mapping[str, str] = field(default_factory=dict)
    """Pre-tokenizer of byte-level files that name none: a token that only its vocabulary has (empty: none is
    needed) -> its name. Files from before spring 2024 and PowerInfer's are such."""
    hf_keys: Mapping[str, str] = field(default_factory=dict)
    """Llama's name of a config.json key (``norm_eps`` for ``rms_norm_eps``) -> this family's."""
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of absent config.json keys (transformers leaves out a family's defaults), by Llama's names."""
    hf_required: Mapping[str, Any] = field(default_factory=dict)
    """config.json keys that must be absent or have this value."""
    hf_adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Rewrites config.json first, where renaming does not do."""

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate."""
        return "ffn_gate" in self.tensors or "ffn_gate_exps" in self.tensors

    @property
    def delta_net(self) -> bool:
        """Whether there are layers that are gated delta nets."""
        return "ssm_beta" in self.tensors

    @property
    def latent(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return "attn_kv_a_mqa" in self.tensors

    @property
    def short_conv(self) -> bool:
        """Whether there are layers that are gated short convolutions."""
        return "shortconv_conv" in self.tensors

    @property
    def mamba(self) -> bool:
        """Whether there are layers of Mamba-2."""
        return "ssm_d" in self.tensors

    @property
    def single(self) -> bool:
        """Whether each layer is a mixer or an FFN alone."""
        return self.mamba and "ffn_norm" not in self.tensors

    @property
    def dense_layers(self) -> bool:
        """Whether some layers may have one FFN."""
        return "ffn_up" in self.tensors

    @property
    def rotary(self) -> bool:
        """Whether positions are told by RoPE."""
        return self.positions and "position_embd" not in self.tensors

    @property
    def bias_names(self) -> frozenset[str]:
        """Linear layers that may have a bias."""
        return frozenset(name for names in self.biases.values() for name in names)

    @property
    def always_biased(self) -> frozenset[str]:
        """Tensors that have a bias in every model of the family: LayerNorms, and what is so by default."""
        layer_norms = self.norm is NormKind.LAYER and self.norm_biases
        norms = [name for name in self.tensors if layer_norms and SHAPES.get(name) == "D"]
        flags = [flag for flag in self.biases if self.hf_defaults.get(flag) and not self.maybe_biased]
        return frozenset([*norms, *(name for flag in flags for name in self.biases[flag])])
