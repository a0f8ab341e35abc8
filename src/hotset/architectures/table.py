"""The architectures that Hotset runs, as one table: add a row to add an architecture.

A row says what a model family's files call things and which of the decoder's options it takes. It knows
nothing of how files are read: `hotset.formats` does that, and refuses whatever a row does not describe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

from hotset.core.config import Activation, NormKind

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
        "post_attention_norm": "D",
        "ffn_norm": "D",
        "ffn_gate": "FD",
        "ffn_up": "FD",
        "ffn_down": "DF",
        "post_ffw_norm": "D",
    }
)
"""Every tensor's ``.weight`` in NumPy order; a ``.bias`` has the first of the dimensions.

V vocabulary, P positions, D hidden, F FFN, H head, Q = heads x head, K = key/value heads x head.
"""

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


class Windows(Enum):
    """Which layers attend only to a window of the last tokens."""

    NONE = "none"
    ALL = "all"
    LATE = "late"
    """Those from ``max_window_layers`` on (Qwen)."""
    PATTERN = "pattern"
    """All but every sixth (Gemma 3)."""


_QKV = ("attn_q", "attn_k", "attn_v")
_ATTENTION = (*_QKV, "attn_output")
_FFN = ("ffn_gate", "ffn_up", "ffn_down")


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
    """Our name -> Hugging Face's module, ``{}`` being the layer; alternatives are separated by ``|``."""
    activations: Mapping[str, Activation] = field(default_factory=lambda: ACTIVATIONS)
    norm: NormKind = NormKind.RMS
    parallel: bool = False
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """config.json's flag -> linear layers that then have a bias."""
    optional: frozenset[str] = frozenset({"output"})
    """Tensors that a model may lack. Without ``output`` the token embedding takes its place."""
    fused_qkv: bool = False
    """Files hold ``attn_qkv``: Hugging Face's by key/value head (queries, key, value), GGUF's as q, k, v."""
    norm_weight_plus_one: bool = False
    """Hugging Face's files store the norms' weights minus one (GGUF's never do)."""
    embedding_scaled: bool = False
    """The token embedding is multiplied by the square root of the hidden size."""
    position_offset: int = 0
    """Row of ``position_embd`` for position 0, where positions are learned instead of RoPE."""
    gguf_rope_interleaved: bool = False
    """Pairs in GGUF's q and k rows are (2i, 2i + 1); in Hugging Face's they never are."""
    windows: Windows = Windows.NONE
    local_rope_theta: float | None = None
    """RoPE's base in windowed layers, unscaled, where it differs (default)."""
    gguf_hidden_scaled_depth: int | None = None
    """A GGUF model this deep scales q.k by (hidden / heads) ** -0.5; GGUF has no key for it (Gemma 3 27B)."""
    gguf_also: Mapping[str, str] = field(default_factory=dict)
    """llama.cpp's name of a GGUF key, the architecture's prefix left out -> Ollama's."""
    gguf_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of absent GGUF keys (Ollama's converter leaves out a family's defaults)."""
    gguf_depth_defaults: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """More of them, for models with so many layers."""
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
        return "ffn_gate" in self.tensors

    @property
    def rotary(self) -> bool:
        """RoPE, else learned positions."""
        return "position_embd" not in self.tensors

    @property
    def bias_names(self) -> frozenset[str]:
        """Linear layers that may have a bias."""
        return frozenset(name for names in self.biases.values() for name in names)

    @property
    def always_biased(self) -> frozenset[str]:
        """Tensors that have a bias in every model of the family: LayerNorms, and what is so by default."""
        layer_norms = self.norm is NormKind.LAYER
        norms = [name for name in self.tensors if layer_norms and SHAPES.get(name) == "D"]
        flags = [flag for flag in self.biases if self.hf_defaults.get(flag)]
        return frozenset([*norms, *(name for flag in flags for name in self.biases[flag])])


_LLAMA_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
_QK_NORMS = {
    "attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_GEMMA3_TENSORS = {
    **_LLAMA_TENSORS,
    **_QK_NORMS,
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
# attn_norm_2 (Falcon-40B) is the attention's norm, and attn_norm the FFN's; without it attn_norm serves both.
_FALCON_TENSORS = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "transformer.h.{}.input_layernorm|transformer.h.{}.ln_mlp",
    "attn_norm_2": "transformer.h.{}.ln_attn",
    "attn_qkv": "transformer.h.{}.self_attention.query_key_value",
    "attn_output": "transformer.h.{}.self_attention.dense",
    "ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
    "ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
}
_OPT_TENSORS = {
    "token_embd": "model.decoder.embed_tokens",
    "position_embd": "model.decoder.embed_positions",
    "output_norm": "model.decoder.final_layer_norm",
    "output": "lm_head",
    "attn_norm": "model.decoder.layers.{}.self_attn_layer_norm",
    "attn_q": "model.decoder.layers.{}.self_attn.q_proj",
    "attn_k": "model.decoder.layers.{}.self_attn.k_proj",
    "attn_v": "model.decoder.layers.{}.self_attn.v_proj",
    "attn_output": "model.decoder.layers.{}.self_attn.out_proj",
    "ffn_norm": "model.decoder.layers.{}.final_layer_norm",
    "ffn_up": "model.decoder.layers.{}.fc1",
    "ffn_down": "model.decoder.layers.{}.fc2",
}


def _adapt_falcon(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Falcon's three attention layouts as a number of key/value heads, and its default FFN size."""
    hidden = config.get("hidden_size")
    adapted = {"ffn_hidden_size": 4 * hidden if isinstance(hidden, int) else None, **config}
    if config.get("new_decoder_architecture"):
        adapted["parallel_attn"] = True  # whatever the file says
    elif config.get("multi_query", True):
        adapted["num_kv_heads"] = 1
    return adapted


_LLAMA = Architecture(
    name="llama",
    model_types=("llama",),
    activation=Activation.SILU,
    tensors=_LLAMA_TENSORS,
    biases={"attention_bias": _ATTENTION, "mlp_bias": _FFN},
    gguf_rope_interleaved=True,
    default_pre={"<|begin_of_text|>": "llama-bpe"},
)
_MISTRAL = replace(
    _LLAMA,
    model_types=("mistral",),
    biases={},
    windows=Windows.ALL,
    hf_defaults={"sliding_window": 4096, "max_position_embeddings": 131072},
)

ARCHITECTURES: tuple[Architecture, ...] = (
    _LLAMA,
    _MISTRAL,
    # ReLU on gate and up, though config.json says relu (arXiv 2406.05955).
    replace(
        _MISTRAL,
        name="bamboo",
        model_types=("bamboo", "turbosparse_mistral", "turbosparsemistral"),
        activation=Activation.DRELU,
        activations={"relu": Activation.DRELU, "drelu": Activation.DRELU},
    ),
    Architecture(
        name="qwen2",
        model_types=("qwen2",),
        activation=Activation.SILU,
        tensors=_LLAMA_TENSORS,
        biases={"attention_bias": _QKV},
        windows=Windows.LATE,
        default_pre={"": "qwen2"},
        hf_defaults={"attention_bias": True, "max_position_embeddings": 32768},
    ),
    Architecture(
        name="qwen3",
        model_types=("qwen3",),
        activation=Activation.SILU,
        tensors={**_LLAMA_TENSORS, **_QK_NORMS},
        biases={"attention_bias": _ATTENTION},
        windows=Windows.LATE,
        default_pre={"": "qwen2"},
        hf_defaults={"head_dim": 128, "max_position_embeddings": 32768},
    ),
    Architecture(
        name="gemma3",
        model_types=("gemma3_text",),
        activation=Activation.GELU_TANH,
        tensors=_GEMMA3_TENSORS,
        biases={"attention_bias": _ATTENTION},
        norm_weight_plus_one=True,
        embedding_scaled=True,
        windows=Windows.PATTERN,
        local_rope_theta=1e4,
        gguf_hidden_scaled_depth=62,
        gguf_also={"rope.freq_base": "rope.global.freq_base", "rope.freq_base_swa": "rope.local.freq_base"},
        gguf_defaults={"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6},
        # The 4B, 12B and 27B.
        gguf_depth_defaults={layers: {"rope.scaling.factor": 8.0} for layers in (34, 48, 62)},
        hf_keys={"hidden_act": "hidden_activation"},
        hf_defaults={
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
            "vocab_size": 262208,
        },
    ),
    Architecture(
        name="falcon",
        model_types=("falcon",),
        activation=Activation.GELU,
        tensors=_FALCON_TENSORS,
        norm=NormKind.LAYER,
        parallel=True,
        biases={"bias": (*_QKV, "attn_output", "ffn_up", "ffn_down")},
        optional=frozenset({"output", "attn_norm_2"}),
        fused_qkv=True,
        default_pre={"": "falcon"},
        hf_keys={
            "intermediate_size": "ffn_hidden_size",
            "num_key_value_heads": "num_kv_heads",
            "norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation",
        },
        hf_defaults={"norm_eps": 1e-5, "tie_word_embeddings": True},
        hf_required={"alibi": False, "parallel_attn": True},
        hf_adapt=_adapt_falcon,
    ),
    Architecture(
        name="opt",
        model_types=("opt",),
        activation=Activation.RELU,
        tensors=_OPT_TENSORS,
        norm=NormKind.LAYER,
        biases={"enable_bias": (*_ATTENTION, "ffn_up", "ffn_down")},
        position_offset=2,
        default_pre={"": "gpt-2"},
        hf_keys={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
        hf_defaults={"enable_bias": True, "norm_eps": 1e-5, "tie_word_embeddings": True},
        hf_required={
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "layer_norm_elementwise_affine": True,
        },
    ),
    Architecture(
        name="nemotron",
        model_types=("nemotron",),
        activation=Activation.RELU2,
        tensors={name: module for name, module in _LLAMA_TENSORS.items() if name != "ffn_gate"},
        norm=NormKind.LAYER,
        biases={"attention_bias": _ATTENTION, "mlp_bias": ("ffn_up", "ffn_down")},
        norm_weight_plus_one=True,
        hf_keys={"norm_eps": "norm_eps"},
        hf_defaults={"norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.5},
    ),
)
