"""The rows of variants of Llama: other places of norms, fused matrices, layers without RoPE, factors."""

from dataclasses import replace

from hotset.architectures.dense import ATTENTION, FFN, LLAMA, LLAMA_TENSORS, QK_NORMS, QKV
from hotset.architectures.row import Architecture, Windows
from hotset.core.config import Activation

_LAYER = "model.layers.{}"

# Norms after attention and FFN, none before.
_NORMS_AFTER = {
    **{name: module for name, module in LLAMA_TENSORS.items() if name not in ("attn_norm", "ffn_norm")},
    **QK_NORMS,
    "post_attention_norm": f"{_LAYER}.post_attention_layernorm",
    "post_ffw_norm": f"{_LAYER}.post_feedforward_layernorm",
}
_FUSED = {
    **LLAMA_TENSORS,
    "attn_qkv": f"{_LAYER}.self_attn.qkv_proj",
    "ffn_gate_up": f"{_LAYER}.mlp.gate_up_proj",
}
_OLMO2 = Architecture(
    name="olmo2",
    model_types=("olmo2",),
    activation=Activation.SILU,
    tensors=_NORMS_AFTER,
    shapes={"attn_q_norm": "Q", "attn_k_norm": "K"},
    biases={"attention_bias": ATTENTION},
    gguf_aliases=("olmo3",),  # Ollama's
    windows=Windows.PATTERN,
    window_period=4,
    local_rope_plain=True,
    default_pre={"": "dbrx"},
    hf_defaults={"norm_eps": 1e-5},
    hf_required={"sliding_window": None},
)

LLAMA_VARIANTS: tuple[Architecture, ...] = (
    replace(
        LLAMA,
        name="smollm3",
        model_types=("smollm3",),
        rope_period=4,
        default_pre={"": "smaug-bpe"},
        hf_defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
        },
        hf_required={"use_sliding_window": False},
    ),
    Architecture(
        name="phi3",
        model_types=("phi3",),
        activation=Activation.SILU,
        tensors=_FUSED,
        fused_qkv=True,
        fused_gate_up=True,
        windows=Windows.ALL,
        default_pre={"<|im_sep|>": "dbrx", "": "gpt-4o"},
        hf_defaults={
            "max_position_embeddings": 4096,
            "norm_eps": 1e-5,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
        },
    ),
    replace(
        LLAMA,
        name="mistral3",
        model_types=("ministral3",),
        biases={},
        growing_queries=True,
        default_pre={"": "tekken"},
        gguf_also={
            "rope.scaling.yarn_beta_fast": "rope.scaling.beta_fast",
            "rope.scaling.yarn_beta_slow": "rope.scaling.beta_slow",
            "rope.scaling.yarn_log_multiplier": "rope.scaling.mscale_all_dim",
            "attention.temperature_scale": "rope.scaling_beta",
        },
        hf_defaults={
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        hf_required={"sliding_window": None},
    ),
    replace(
        LLAMA,
        name="granite",
        model_types=("granite",),
        multipliers=True,
        default_pre={"": "refact"},
    ),
    replace(
        LLAMA,
        name="arcee",
        model_types=("arcee",),
        activation=Activation.RELU2,
        tensors={name: module for name, module in LLAMA_TENSORS.items() if name != "ffn_gate"},
        biases={"attention_bias": ATTENTION, "mlp_bias": ("ffn_up", "ffn_down")},
        hf_defaults={"max_position_embeddings": 4096, "norm_eps": 1e-5},
    ),
    _OLMO2,
    replace(
        _OLMO2,
        model_types=("olmo3",),
        hf_defaults={"norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096},
        hf_required={},
    ),
    Architecture(
        name="exaone4",
        model_types=("exaone4",),
        activation=Activation.SILU,
        tensors=_NORMS_AFTER,
        windows=Windows.PATTERN,
        window_period=4,
        full_without_rope=True,
        default_pre={"": "exaone4"},
        hf_defaults={"norm_eps": 1e-5, "sliding_window": 4096},
    ),
    Architecture(
        name="seed_oss",
        model_types=("seed_oss",),
        activation=Activation.SILU,
        tensors=LLAMA_TENSORS,
        biases={"attention_bias": QKV, "attention_out_bias": ("attn_output",), "mlp_bias": FFN},
        gguf_names={"post_attention_norm": "ffn_norm"},
        default_pre={"": "seed-coder"},
        hf_defaults={
            "attention_bias": True,
            "head_dim": 128,
            "max_position_embeddings": 524288,
            "num_key_value_heads": 8,
        },
    ),
    Architecture(
        name="glm4",
        model_types=("glm4",),
        activation=Activation.SILU,
        tensors={
            **LLAMA_TENSORS,
            "ffn_gate_up": f"{_LAYER}.mlp.gate_up_proj",
            "post_attention_norm": f"{_LAYER}.post_self_attn_layernorm",
            "post_ffw_norm": f"{_LAYER}.post_mlp_layernorm",
        },
        biases={"attention_bias": QKV},
        maybe_biased=True,
        fused_gate_up=True,
        gguf_rope_interleaved=True,
        hf_rope_interleaved=True,
        default_pre={"": "glm4"},
        hf_defaults={
            "attention_bias": True,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "norm_eps": 1.5625e-7,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5,
        },
    ),
    Architecture(
        name="ernie4_5",
        model_types=("ernie4_5",),
        activation=Activation.SILU,
        tensors=LLAMA_TENSORS,
        biases={"use_bias": (*ATTENTION, *FFN)},
        gguf_rope_interleaved=True,
        hf_rope_interleaved=True,
        hf_defaults={
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "norm_eps": 1e-5,
            "num_key_value_heads": 2,
            "rope_theta": 5e5,
            "tie_word_embeddings": True,
        },
    ),
)
