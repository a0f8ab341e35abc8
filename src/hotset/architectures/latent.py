"""The rows of families with multi-head latent attention: DeepSeek's and GLM-4.7-Flash."""

from dataclasses import replace

from hotset.architectures.dense import LLAMA_TENSORS
from hotset.architectures.leading_dense import SHARED_EXPERTS, with_dense_layers, with_shared_size
from hotset.architectures.mixtures import QWEN_EXPERTS
from hotset.architectures.row import Architecture, Mixture
from hotset.core.config import Activation, Gating

_ATTENTION = "model.layers.{}.self_attn."
_TENSORS = {
    **{name: module for name, module in LLAMA_TENSORS.items() if name not in ("attn_k", "attn_v")},
    "attn_q_a": _ATTENTION + "q_a_proj",
    "attn_q_a_norm": _ATTENTION + "q_a_layernorm",
    "attn_q_b": _ATTENTION + "q_b_proj",
    "attn_kv_a_mqa": _ATTENTION + "kv_a_proj_with_mqa",
    "attn_kv_a_norm": _ATTENTION + "kv_a_layernorm",
    "attn_kv_b": _ATTENTION + "kv_b_proj",
    "attn_k_b": _ATTENTION + "k_b_proj",
    "attn_v_b": _ATTENTION + "v_b_proj",
    **QWEN_EXPERTS,
    **SHARED_EXPERTS,
    "exp_probs_b": "model.layers.{}.mlp.gate.e_score_correction_bias",
}
_SIZES = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


_V2 = Architecture(
    name="deepseek2",
    model_types=("deepseek_v2",),
    activation=Activation.SILU,
    tensors=_TENSORS,
    # Where GGUF files do not state the gating, they are V2's, or V3's, whose experts have a bias.
    experts=Mixture(normalised=False, gating_if_biased=Gating.SIGMOID),
    shapes={"attn_q": "qD", "attn_output": "Do"},
    optional=frozenset({"output", "exp_probs_b"}),
    gguf_aliases=("glm4moelite",),
    gguf_rope_interleaved=True,
    hf_rope_interleaved=True,
    default_pre={"[gMASK]": "glm4", "": "deepseek-llm"},
    hf_keys={"num_experts": "n_routed_experts"},
    hf_defaults={
        **_SIZES,
        "first_k_dense_replace": 0,
        "moe_intermediate_size": 1407,
        "n_shared_experts": 2,
        "num_experts": 64,
        "q_lora_rank": 1536,
        "routed_scaling_factor": 1.0,
    },
    hf_required={
        "attention_bias": False,
        "mlp_bias": False,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,  # which its two implementations read otherwise
        "scoring_func": "softmax",
        "topk_method": "greedy",
    },
    hf_adapt=with_shared_size,
)
_V3 = replace(
    _V2,
    model_types=("deepseek_v3",),
    experts=Mixture(gating=Gating.SIGMOID),
    hf_defaults={
        **_SIZES,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "norm_topk_prob": True,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "q_lora_rank": 1536,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
    },
    hf_required={
        "attention_bias": False,
        "moe_layer_freq": 1,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
)

LATENT: tuple[Architecture, ...] = (
    _V2,
    _V3,
    replace(
        _V3,
        model_types=("glm4_moe_lite",),
        hf_defaults={
            **_SIZES,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 202752,
            "moe_intermediate_size": 1536,
            "n_group": 1,
            "norm_eps": 1e-5,
            "norm_topk_prob": True,
            "num_experts": 64,
            "num_experts_per_tok": 4,
            "partial_rotary_factor": 1.0,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "routed_scaling_factor": 1.8,
            "topk_group": 1,
            "v_head_dim": 256,
        },
        hf_required={**_V3.hf_required, "mlp_layer_types": None},
        hf_adapt=with_dense_layers,
    ),
)
