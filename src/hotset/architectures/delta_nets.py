"""The rows of families of which most layers are gated delta nets."""

from dataclasses import replace

from hotset.architectures.dense import LLAMA_TENSORS, QK_NORMS
from hotset.architectures.mixtures import NO_DENSE_LAYERS, QWEN_EXPERTS, SHARED_EXPERT, WITHOUT_FFN
from hotset.architectures.row import Architecture, Mixture
from hotset.core.config import Activation

_DELTA_NET = {
    "attn_qkv": "model.layers.{}.linear_attn.in_proj_qkv",
    "attn_gate": "model.layers.{}.linear_attn.in_proj_z",
    "ssm_beta": "model.layers.{}.linear_attn.in_proj_b",
    "ssm_alpha": "model.layers.{}.linear_attn.in_proj_a",
    "ssm_conv1d": "model.layers.{}.linear_attn.conv1d",
    "ssm_dt": "model.layers.{}.linear_attn.dt_bias",
    "ssm_a": "model.layers.{}.linear_attn.A_log",
    "ssm_norm": "model.layers.{}.linear_attn.norm",
    "ssm_out": "model.layers.{}.linear_attn.out_proj",
}
# Matrices of which each key head has its parts together.
_FUSED = {
    "ssm_in": "model.layers.{}.linear_attn.in_proj_qkvz",
    "ssm_ba": "model.layers.{}.linear_attn.in_proj_ba",
}
_EXPERTS = {**WITHOUT_FFN, **QK_NORMS, **_DELTA_NET, **QWEN_EXPERTS, **SHARED_EXPERT}
_QWEN35 = Architecture(
    name="qwen35",
    model_types=("qwen3_5_text",),
    activation=Activation.SILU,
    tensors={**LLAMA_TENSORS, **QK_NORMS, **_DELTA_NET},
    # G gated queries; C channels, W kernel, T value heads, B head, Z = T x B.
    shapes={
        "attn_q": "GD",
        "attn_qkv": "CD",
        "attn_gate": "ZD",
        "ssm_beta": "TD",
        "ssm_alpha": "TD",
        "ssm_conv1d": "CW",
        "ssm_dt": "T",
        "ssm_a": "T",
        "ssm_norm": "B",
        "ssm_out": "DZ",
    },
    norm_weight_plus_one=True,
    gated_attention=True,
    gguf_tiled=True,
    gguf_names={"post_attention_norm": "ffn_norm"},
    default_pre={"": "qwen35"},
    hf_defaults={
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.25,
    },
    hf_required={"attention_bias": False, "attn_output_gate": True, "hidden_act": "silu"},
)
_QWEN35MOE = replace(
    _QWEN35, name="qwen35moe", model_types=("qwen3_5_moe_text",), tensors=_EXPERTS, experts=Mixture()
)

DELTA_NETS: tuple[Architecture, ...] = (
    _QWEN35,
    _QWEN35MOE,
    replace(
        _QWEN35MOE,
        name="qwen3next",
        model_types=("qwen3_next",),
        tensors={**_EXPERTS, **_FUSED},
        gguf_tiled=False,
        default_pre={"": "qwen2"},
        hf_defaults={**_QWEN35.hf_defaults, "norm_topk_prob": True},
        hf_required={**_QWEN35.hf_required, **NO_DENSE_LAYERS},
    ),
)
