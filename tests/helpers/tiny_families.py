"""Tiny random-weight `transformers` models of families that differ from Llama in little."""

from collections.abc import Callable
from typing import Any

from helpers.tiny_models import SIZES, Model

_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 600.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def tiny_families() -> dict[str, Callable[[], Model]]:
    """Name -> builder of the model, for `tiny_models.save`."""
    return {
        "smollm3": smollm3,
        "phi3": phi3,
        "phi3-longrope": phi3_longrope,
        "ministral3": ministral3,
        "granite": granite,
        "arcee": arcee,
        "olmo2": olmo2,
        "olmo3": olmo3,
        "exaone4": exaone4,
        "exaone4-no-window": lambda: exaone4(sliding_window=None, layer_types=["full_attention"] * 5),
        "seed-oss": seed_oss,
        "glm4": glm4,
        "glm4-no-biases": lambda: glm4(attention_bias=False),
        "ernie4_5": ernie4_5,
        "mellum": mellum,
        "granitemoe": granitemoe,
        "granitemoe-shared": lambda: granitemoe("GraniteMoeShared", shared_intermediate_size=19),
        "granitemoe-shared-none": lambda: granitemoe("GraniteMoeShared", shared_intermediate_size=0),
        "granite-hybrid": granite_hybrid,
        "granite-hybrid-moe": lambda: granite_hybrid(num_local_experts=6, num_experts_per_tok=3),
        "granite-hybrid-attention": lambda: granite_hybrid(
            layer_types=["attention"] * 3, num_hidden_layers=3, position_embedding_type="rope"
        ),
        "glm4moe": glm4moe,
        "ernie4_5-moe": ernie4_5_moe,
        "gemma2": gemma2,
        "gemma4": gemma4,
        "gemma4-one-size": lambda: gemma4(
            num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], global_head_dim=10
        ),
        "gemma4-shared": gemma4_shared,
        "gemma4-beside": gemma4_beside,
        "laguna": laguna,
        "cohere2moe": cohere2_moe,
        "cohere2moe-softmax": lambda: cohere2_moe(
            expert_selection_fn="softmax", num_shared_experts=0, rms_norm_eps=0.02
        ),
        "deepseek-v2": deepseek_v2,
        "deepseek-v2-low-rank": lambda: deepseek_v2(q_lora_rank=19),
        "deepseek-v3": deepseek_v3,
        "glm4-moe-lite": glm4_moe_lite,
    }


def _build(name: str, *options: dict[str, Any]) -> Model:
    """The family's model with these options, later ones before earlier."""
    import transformers

    merged: dict[str, Any] = {}
    for some in options:
        merged |= some
    suffix = "TextConfig" if name == "Gemma4" else "Config"
    config = getattr(transformers, f"{name}{suffix}")(**merged)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def smollm3(**options: Any) -> Model:
    heads = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
    own = {"num_hidden_layers": 5, "pad_token_id": 0, "tie_word_embeddings": True}
    return _build("SmolLM3", SIZES, heads, own, options)


def phi3(**options: Any) -> Model:
    sizes = {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 0}
    return _build("Phi3", SIZES, sizes, options)


def phi3_longrope() -> Model:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 600.0,
        "partial_rotary_factor": 0.8,
        "short_factor": [1.0, 1.1, 1.3, 1.6],
        "long_factor": [1.0, 2.0, 3.5, 7.0],
    }
    return phi3(rope_parameters=rope, original_max_position_embeddings=32)


def ministral3(**options: Any) -> Model:
    rope = _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
    own = {"rope_parameters": rope, "pad_token_id": 0}
    return _build("Ministral3", SIZES, _HEADS, own, options)


def granite(**options: Any) -> Model:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
    factors = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
    }
    return _build("Granite", SIZES, sizes, factors, options)


def arcee(**options: Any) -> Model:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
    return _build("Arcee", SIZES, sizes, options)


def olmo2(**options: Any) -> Model:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 0}
    return _build("Olmo2", SIZES, sizes, options)


def olmo3(**options: Any) -> Model:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6, "pad_token_id": 0}
    plain = {"rope_type": "default", "rope_theta": 600.0}
    own = {
        "num_hidden_layers": 5,
        "sliding_window": 7,
        "rope_parameters": {"full_attention": _YARN, "sliding_attention": plain},
    }
    return _build("Olmo3", SIZES, sizes, own, options)


def exaone4(**options: Any) -> Model:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 5}
    return _build("Exaone4", SIZES, sizes, {"sliding_window": 7}, options)


def seed_oss(**options: Any) -> Model:
    return _build("SeedOss", SIZES, _HEADS, {"pad_token_id": 0, "attention_out_bias": True}, options)


def glm4(**options: Any) -> Model:
    rope = {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5}
    own = {"head_dim": 12, "pad_token_id": 0, "eos_token_id": 0, "rope_parameters": rope}
    return _build("Glm4", SIZES, _HEADS, own, options)


def ernie4_5(**options: Any) -> Model:
    return _build("Ernie4_5", SIZES, _HEADS, {"use_bias": True, "pad_token_id": 0}, options)


_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 23}


def mellum(**options: Any) -> Model:
    plain = {"rope_type": "default", "rope_theta": 600.0}
    own = {
        "num_hidden_layers": 5,
        "num_experts": 6,
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
        "sliding_window": 7,
        "rope_parameters": {"full_attention": _YARN, "sliding_attention": plain},
    }
    return _build("Mellum", SIZES, _HEADS, _EXPERTS, own, options)


def granitemoe(name: str = "GraniteMoe", **options: Any) -> Model:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 23}
    own = {"num_local_experts": 6, "num_experts_per_tok": 3}
    factors = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
    }
    return _build(name, SIZES, sizes, own, factors, options)


def granite_hybrid(**options: Any) -> Model:
    """Mamba-2, two of five layers with attention."""
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "shared_intermediate_size": 40,
        "num_local_experts": 0,
        "position_embedding_type": "nope",
        "layer_types": ["mamba", "attention", "mamba", "mamba", "attention"],
        "mamba_n_heads": 6,
        "mamba_d_head": 16,
        "mamba_n_groups": 2,
        "mamba_d_state": 16,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
    }
    return _build("GraniteMoeHybrid", SIZES, sizes, options)


def glm4moe(**options: Any) -> Model:
    rope = {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5}
    own = {
        "head_dim": 12,
        "attention_bias": True,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.7,
        "rope_parameters": rope,
        "use_qk_norm": True,
    }
    return _build("Glm4Moe", SIZES, _HEADS, _EXPERTS, own, options)


def ernie4_5_moe(**options: Any) -> Model:
    sizes = {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 0}
    own = {"moe_num_experts": 6, "moe_k": 3, "moe_num_shared_experts": 2, "moe_intermediate_size": 23}
    own["intermediate_size"] = 92  # llama.cpp's converter takes the shared size for this over the key heads
    return _build("Ernie4_5_Moe", SIZES, sizes, own, options)


def gemma2(**options: Any) -> Model:
    own = {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "query_pre_attn_scalar": 10,
        "sliding_window": 7,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "attn_implementation": "eager",  # others drop the cap
    }
    return _build("Gemma2", SIZES, _HEADS, own, options)


def gemma4(**options: Any) -> Model:
    """Two sizes of heads, layers of which one in three attends to all."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    own = {
        "num_hidden_layers": 6,
        "layer_types": kinds,
        "global_head_dim": 16,
        "sliding_window": 7,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 3.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.5,
                "rope_theta": 900.0,
            },
        },
    }
    return _build("Gemma4", SIZES, _HEADS, own, options)


def gemma4_shared() -> Model:
    """As E2B: the last layers read earlier ones' keys and values and are wide; inputs for each layer."""
    kinds = ("sliding", "sliding", "sliding", "full", "sliding", "full")
    return gemma4(
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=9,
        vocab_size_per_layer_input=SIZES["vocab_size"],
        layer_types=[f"{kind}_attention" for kind in kinds],
    )


def gemma4_beside() -> Model:
    """As 26B-A4B: experts beside each FFN, values that are the keys, other numbers of heads."""
    return gemma4(
        enable_moe_block=True,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        num_experts=6,
        top_k_experts=3,
        moe_intermediate_size=23,
    )


_LATENT = {
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "kv_lora_rank": 22,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
}


def deepseek_v2(**options: Any) -> Model:
    """As V2-Lite: queries of full rank, YaRN with a factor on scores."""
    rope = _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}
    own = {"first_k_dense_replace": 1, "q_lora_rank": None, "rope_parameters": rope}
    return _build("DeepseekV2", SIZES, _LATENT, _EXPERTS, own, options)


def deepseek_v3(**options: Any) -> Model:
    """Experts in groups; queries of low rank, YaRN."""
    groups = {"n_routed_experts": 12, "n_group": 4, "topk_group": 2}
    rope = _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
    own = {"first_k_dense_replace": 1, "q_lora_rank": 19, "rope_parameters": rope}
    return _build("DeepseekV3", SIZES, _LATENT, _EXPERTS, groups, own, options)


def glm4_moe_lite(**options: Any) -> Model:
    rope = {"rope_type": "default", "rope_theta": 700.0}
    own = {"q_lora_rank": 19, "n_shared_experts": 1, "rope_parameters": rope}
    return _build("Glm4MoeLite", SIZES, _LATENT, _EXPERTS, own, options)


def laguna(**options: Any) -> Model:
    """Two numbers of heads, a gate for each; every fourth layer attends to all."""
    plain = {"rope_type": "default", "rope_theta": 600.0, "partial_rotary_factor": 1.0}
    kinds = ("full", "sliding", "sliding", "sliding", "full")
    own = {
        "num_hidden_layers": 5,
        "num_attention_heads_per_layer": [4, 6, 6, 6, 4],
        "layer_types": [f"{kind}_attention" for kind in kinds],
        "sliding_window": 7,
        "num_experts": 6,
        "shared_expert_intermediate_size": 19,
        "moe_routed_scaling_factor": 1.7,
        "rope_parameters": {
            "full_attention": _YARN | {"partial_rotary_factor": 0.6},
            "sliding_attention": plain,
        },
    }
    return _build("Laguna", SIZES, _HEADS, _EXPERTS, own, options)


def cohere2_moe(**options: Any) -> Model:
    """A dense layer with RoPE that attends to all, then windows and one layer without positions."""
    kinds = ("full", "sliding", "sliding", "full", "sliding")
    own = {
        "num_hidden_layers": 5,
        "layer_types": [f"{kind}_attention" for kind in kinds],
        "mlp_layer_types": ["dense"] + ["sparse"] * 4,
        "sliding_window": 7,
        "intermediate_size": 23,
        "prefix_dense_intermediate_size": 41,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "num_shared_experts": 2,
        "expert_selection_fn": "sigmoid",
        "layer_norm_eps": 0.02,
        "rms_norm_eps": None,
        "logit_scale": 0.4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 600.0},
    }
    return _build("Cohere2Moe", SIZES, _HEADS, own, options)
