"""The rows of families whose first layers have one FFN, and the others a mixture of experts."""

from collections.abc import Mapping
from typing import Any

from hotset.architectures.dense import ATTENTION, FFN, LLAMA_TENSORS, QK_NORMS, QKV
from hotset.architectures.mixtures import QWEN_EXPERTS
from hotset.architectures.row import Architecture, Mixture, Windows
from hotset.core.config import Activation, Gating, NormKind
from hotset.core.errors import CheckpointError

_LAYER = "model.layers.{}."
SHARED_EXPERTS = {
    "ffn_gate_shexp": _LAYER + "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": _LAYER + "mlp.shared_experts.up_proj",
    "ffn_down_shexp": _LAYER + "mlp.shared_experts.down_proj",
}


def with_shared_size(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The shared experts' size as that of one."""
    size, count = config.get("moe_intermediate_size", 1408), config.get("n_shared_experts", 1)
    shared = size * count if isinstance(size, int) and isinstance(count, int) else None
    return {"shared_expert_intermediate_size": shared, **config}


def with_dense_layers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How many layers from the first on are dense, where config.json has a list."""
    kinds = config.get("mlp_layer_types")
    if isinstance(kinds, list):
        dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
        if all(kind == "sparse" for kind in kinds[dense:]):
            config = {**config, "first_k_dense_replace": dense, "mlp_layer_types": None}
    return with_shared_size(config)


def _of_ernie(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The shared experts' number by the name that others have; of the experts a token uses, one of two."""
    used, also = config.get("moe_k"), config.get("num_experts_per_tok")
    if used is not None and also is not None and used != also:
        raise CheckpointError(
            f"num_experts_per_tok: expected {used}, as moe_k says, or nothing; found {also}"
        )
    config = {**config, "moe_k": also if used is None else used}
    return with_shared_size({"n_shared_experts": config.get("moe_num_shared_experts", 2), **config})


_LAGUNA_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
}


def _of_laguna(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the layers have unless the file says it for each, and one gate a head as `true`."""
    heads, layers = config.get("num_attention_heads", 48), config.get("num_hidden_layers")
    defaults: dict[str, Any] = {"rope_parameters": _LAGUNA_ROPE}
    if isinstance(layers, int) and layers < 1 << 16:
        defaults |= {
            "num_attention_heads_per_layer": [heads] * layers,
            "layer_types": ["full_attention"] * layers,
        }
    config = {**config, **{key: value for key, value in defaults.items() if config.get(key) is None}}
    gating = config.get("gating", True)
    return with_dense_layers({**config, "gating": gating == "per-head" or gating})


def _of_cohere(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The shared experts' size, the epsilon of whichever norms there are, and which layers have windows."""
    eps = config.get("rms_norm_eps")
    adapted = with_dense_layers(
        {
            **config,
            "moe_intermediate_size": config.get("intermediate_size", 22528),
            "n_shared_experts": config.get("num_shared_experts", 0),
            "norm_eps": config.get("layer_norm_eps", 1e-5) if eps is None else eps,
        }
    )
    if adapted.get("layer_types") is None and adapted.get("first_k_dense_replace"):
        raise CheckpointError("layer_types is missing, and some of the layers are dense")
    return adapted


LEADING_DENSE: tuple[Architecture, ...] = (
    Architecture(
        name="glm4moe",
        model_types=("glm4_moe",),
        activation=Activation.SILU,
        tensors={
            **LLAMA_TENSORS,
            **QK_NORMS,
            **QWEN_EXPERTS,
            **SHARED_EXPERTS,
            "exp_probs_b": _LAYER + "mlp.gate.e_score_correction_bias",
        },
        experts=Mixture(gating=Gating.SIGMOID),
        biases={"attention_bias": QKV},
        optional=frozenset({"output", "attn_q_norm", "attn_k_norm", "exp_probs_b"}),
        gguf_names={"post_attention_norm": "ffn_norm"},
        default_pre={"": "glm4"},
        hf_keys={"num_experts": "n_routed_experts"},
        hf_defaults={
            "first_k_dense_replace": 1,
            "max_position_embeddings": 131072,
            "norm_eps": 1e-5,
            "norm_topk_prob": True,
            "partial_rotary_factor": 0.5,
            "routed_scaling_factor": 1.0,
        },
        hf_flags={"use_qk_norm": "attn_q_norm.weight"},
        hf_required={"n_group": 1, "topk_group": 1},
        hf_adapt=with_shared_size,
    ),
    Architecture(
        name="ernie4_5-moe",
        model_types=("ernie4_5_moe",),
        activation=Activation.SILU,
        tensors={
            **LLAMA_TENSORS,
            **QWEN_EXPERTS,
            **SHARED_EXPERTS,
            "exp_probs_b": _LAYER + "mlp.moe_statics.e_score_correction_bias",
        },
        experts=Mixture(),
        biases={"use_bias": (*ATTENTION, *FFN)},
        optional=frozenset({"output", "exp_probs_b"}),
        gguf_rope_interleaved=True,
        hf_rope_interleaved=True,
        hf_keys={
            "first_k_dense_replace": "moe_layer_start_index",
            "num_experts": "moe_num_experts",
            "num_experts_per_tok": "moe_k",
        },
        hf_defaults={
            "first_k_dense_replace": 1,
            "max_position_embeddings": 131072,
            "norm_eps": 1e-5,
            "num_key_value_heads": 4,
            "rope_theta": 5e5,
            "tie_word_embeddings": True,
        },
        hf_required={"moe_layer_interval": 1, "moe_norm_min": 1e-12, "use_bias": False},
        hf_adapt=_of_ernie,
    ),
    Architecture(
        name="laguna",
        model_types=("laguna",),
        activation=Activation.SILU,
        tensors={
            **LLAMA_TENSORS,
            **QK_NORMS,
            **QWEN_EXPERTS,
            **{name: module.replace("experts", "expert") for name, module in SHARED_EXPERTS.items()},
            "attn_gate": _LAYER + "self_attn.g_proj",
            "exp_probs_b": _LAYER + "mlp.experts.e_score_correction_bias",
        },
        experts=Mixture(gating=Gating.SIGMOID),
        shapes={"attn_gate": "AD"},
        by_layer=True,
        windows=Windows.FIRST_FULL,
        window_period=4,
        local_rope_theta=1e4,
        gguf_names={"attn_g": "attn_gate"},
        default_pre={"": "laguna"},
        hf_keys={"routed_scaling_factor": "moe_routed_scaling_factor"},
        hf_defaults={
            "first_k_dense_replace": 1,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "moe_intermediate_size": 512,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 1.0,
            "shared_expert_intermediate_size": 512,
            "sliding_window": 512,
        },
        hf_required={
            "attention_bias": False,
            "gating": True,
            "mlp_layer_types": None,
            "moe_apply_router_weight_on_input": False,
            "moe_router_logit_softcapping": 0.0,
        },
        hf_adapt=_of_laguna,
    ),
    Architecture(
        name="cohere2moe",
        model_types=("cohere2_moe",),
        activation=Activation.SILU,
        tensors={
            **{name: module for name, module in LLAMA_TENSORS.items() if name != "ffn_norm"},
            **QWEN_EXPERTS,
            **SHARED_EXPERTS,
            "ffn_gate_inp_shexp": _LAYER + "mlp.shared_experts.switch",
        },
        experts=Mixture(gating=Gating.SIGMOID, normalised=False, averaged=True, maybe_shared=True),
        norm=NormKind.LAYER,
        norm_biases=False,
        rms_where_stated=True,
        parallel=True,
        logit_factor=True,
        windows=Windows.PATTERN,
        window_period=4,
        full_without_rope=True,
        gguf_rope_interleaved=True,
        hf_rope_interleaved=True,
        default_pre={"": "cohere2moe"},
        hf_keys={
            "intermediate_size": "prefix_dense_intermediate_size",
            "moe_intermediate_size": "intermediate_size",
            "norm_eps": "norm_eps",
            "scoring_func": "expert_selection_fn",
        },
        hf_defaults={
            "first_k_dense_replace": 0,
            "head_dim": 128,
            "logit_scale": 0.0625,
            "max_position_embeddings": 8192,
            "norm_topk_prob": True,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "scoring_func": "softmax",
            "sliding_window": 4096,
            "tie_word_embeddings": True,
        },
        hf_required={
            "attention_bias": False,
            "mlp_layer_types": None,
            "norm_topk_prob": True,
            "prefix_dense_sliding_window_pattern": 1,
            "rope_scaling": None,  # `transformers` does not read it here
            "shared_expert_combination_strategy": "average",
        },
        hf_adapt=_of_cohere,
    ),
)
