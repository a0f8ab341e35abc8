"""The rows of families of which every layer has attention and a mixture of experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotset.architectures.dense import ATTENTION, FFN, LLAMA, LLAMA_TENSORS, QK_NORMS, QKV
from hotset.architectures.row import Architecture, Mixture, Windows
from hotset.core.config import Activation, Gating


def expert_tensors(block: str, gate: str, up: str, down: str) -> Mapping[str, str]:
    """Name the router and the experts, single or stacked, of a layer's module; a single one's projections."""
    block = f"model.layers.{{}}.{block}"
    return {
        "ffn_gate_inp": f"{block}.gate",
        "ffn_gate_exps": f"{block}.experts.*.{gate}",
        "ffn_up_exps": f"{block}.experts.*.{up}",
        "ffn_down_exps": f"{block}.experts.*.{down}|{block}.experts.down_proj",
        "ffn_gate_up_exps": f"{block}.experts.gate_up_proj",
    }


SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "model.layers.{}.mlp.shared_expert_gate",
    "ffn_gate_shexp": "model.layers.{}.mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "model.layers.{}.mlp.shared_expert.up_proj",
    "ffn_down_shexp": "model.layers.{}.mlp.shared_expert.down_proj",
}
WITHOUT_FFN = {name: module for name, module in LLAMA_TENSORS.items() if name not in FFN}
QWEN_EXPERTS = expert_tensors("mlp", "gate_proj", "up_proj", "down_proj")
GRANITE_EXPERTS = {
    "ffn_gate_inp": "model.layers.{}.block_sparse_moe.router.layer",
    "ffn_gate_exps": "model.layers.{}.block_sparse_moe.gate",
    "ffn_up_exps": "model.layers.{}.block_sparse_moe.up",
    "ffn_gate_up_exps": "model.layers.{}.block_sparse_moe.input_linear",
    "ffn_down_exps": "model.layers.{}.block_sparse_moe.output_linear",
    "ffn_gate_up_shexp": "model.layers.{}.shared_mlp.input_linear",
    "ffn_gate_shexp": "model.layers.{}.shared_mlp.gate",
    "ffn_up_shexp": "model.layers.{}.shared_mlp.up",
    "ffn_down_shexp": "model.layers.{}.shared_mlp.output_linear",
}
NO_DENSE_LAYERS = {"decoder_sparse_step": 1, "mlp_only_layers": []}

_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_GPT_OSS_TENSORS = {
    "attn_sinks": "model.layers.{}.self_attn.sinks",
    "ffn_gate_inp": "model.layers.{}.mlp.router",
    "ffn_gate_exps": "model.layers.{}.mlp.experts.gate_proj",
    "ffn_up_exps": "model.layers.{}.mlp.experts.up_proj",
    "ffn_down_exps": "model.layers.{}.mlp.experts.down_proj",
    "ffn_gate_up_exps": "model.layers.{}.mlp.experts.gate_up_proj",
}


def _of_smallthinker(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """What its layouts, a 1 for each layer that has something, say in others' words; if they say it at all.

    RoPE belongs to the windowed layers, where there are such, and to all otherwise.
    """
    layers = raw.get("num_hidden_layers")
    every = [1] * layers if isinstance(layers, int) else None
    windowed, usual = raw.get("sliding_window_layout"), {"moe_layer_layout": every, "rope_layout": every}
    adapted = {**raw, "scoring_func": "sigmoid"}
    if raw.get("moe_primary_router_apply_softmax"):
        adapted["scoring_func"] = "softmax"
    if isinstance(windowed, list) and any(windowed):
        adapted["layer_types"] = ["sliding_attention" if own else "full_attention" for own in windowed]
        usual["rope_layout"] = windowed
    else:
        adapted["sliding_window_size"] = None
    for key, value in usual.items():
        if adapted.get(key) == value:
            adapted.pop(key, None)
    return adapted


MIXTURES: tuple[Architecture, ...] = (
    replace(
        LLAMA,
        model_types=("mixtral",),
        tensors={**WITHOUT_FFN, **expert_tensors("block_sparse_moe", "w1", "w3", "w2")},
        experts=Mixture(),
        biases={},
        windows=Windows.ALL,
        hf_keys={"moe_intermediate_size": "intermediate_size"},
        hf_defaults={"max_position_embeddings": 131072, "norm_eps": 1e-5, "rope_theta": 1e6},
    ),
    Architecture(
        name="qwen3moe",
        model_types=("qwen3_moe",),
        activation=Activation.SILU,
        tensors={**WITHOUT_FFN, **QK_NORMS, **QWEN_EXPERTS},
        experts=Mixture(),
        biases={"attention_bias": ATTENTION},
        default_pre={"": "qwen2"},
        hf_defaults={"max_position_embeddings": 32768, "norm_topk_prob": False},
        hf_required={**NO_DENSE_LAYERS, "use_sliding_window": False},
    ),
    Architecture(
        name="qwen2moe",
        model_types=("qwen2_moe",),
        activation=Activation.SILU,
        tensors={**WITHOUT_FFN, **QWEN_EXPERTS, **SHARED_EXPERT},
        experts=Mixture(normalised=False),
        biases={"qkv_bias": QKV},
        default_pre={"": "qwen2"},
        hf_defaults={"max_position_embeddings": 32768, "norm_topk_prob": False, "qkv_bias": True},
        hf_required={**NO_DENSE_LAYERS, "use_sliding_window": False},
    ),
    Architecture(
        name="olmoe",
        model_types=("olmoe",),
        activation=Activation.SILU,
        tensors={**WITHOUT_FFN, **QK_NORMS, **QWEN_EXPERTS},
        experts=Mixture(normalised=False),
        shapes={"attn_q_norm": "Q", "attn_k_norm": "K"},
        biases={"attention_bias": ATTENTION},
        default_pre={"": "olmo"},
        hf_keys={"moe_intermediate_size": "intermediate_size"},
        hf_defaults={"max_position_embeddings": 4096, "norm_eps": 1e-5, "norm_topk_prob": False},
        hf_required={"clip_qkv": None},
    ),
    Architecture(
        name="gpt-oss",
        model_types=("gpt_oss",),
        activation=Activation.SWIGLU_CLAMPED,
        activations={"silu": Activation.SWIGLU_CLAMPED},
        tensors={**WITHOUT_FFN, **_GPT_OSS_TENSORS},
        experts=Mixture(gating=Gating.SELECTED, normalised=False, hf_transposed=True),
        biases={"attention_bias": ATTENTION, "mlp_bias": (*_EXPERTS, "ffn_gate_inp")},
        gguf_aliases=("gptoss",),
        gguf_names={"attn_out": "attn_output", "attn_sinks": "attn_sinks", "post_attention_norm": "ffn_norm"},
        gguf_defaults={"rope.scaling.type": "yarn"},
        gguf_pre={"default": "gpt-4o"},
        yarn_rounded=False,
        windows=Windows.PATTERN,
        window_period=2,
        default_pre={"": "gpt-4o"},
        hf_keys={"moe_intermediate_size": "intermediate_size"},
        hf_defaults={
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 64,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "rope_theta": 150000.0,
            "sliding_window": 128,
        },
        hf_required={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    ),
    Architecture(
        name="smallthinker",
        model_types=("smallthinker",),
        activation=Activation.RELU,
        tensors={
            **WITHOUT_FFN,
            **expert_tensors("block_sparse_moe", "gate", "up", "down"),
            "ffn_gate_inp": "model.layers.{}.block_sparse_moe.primary_router",
        },
        experts=Mixture(early=True),
        windows=Windows.FIRST_FULL,
        window_period=4,
        full_without_rope=True,
        default_pre={"": "qwen2"},
        hf_keys={
            "num_experts": "moe_num_primary_experts",
            "num_experts_per_tok": "moe_num_active_primary_experts",
            "moe_intermediate_size": "moe_ffn_hidden_size",
            "sliding_window": "sliding_window_size",
        },
        hf_required={
            "moe_enable_early_router": True,
            "moe_enable_secondary_experts": False,
            "moe_layer_layout": None,
            "rope_layout": None,
        },
        hf_adapt=_of_smallthinker,
    ),
    Architecture(
        name="mellum",
        model_types=("mellum",),
        activation=Activation.SILU,
        tensors={**WITHOUT_FFN, **QK_NORMS, **QWEN_EXPERTS},
        experts=Mixture(),
        biases={"attention_bias": ATTENTION},
        windows=Windows.PATTERN,
        window_period=4,
        local_rope_plain=True,
        default_pre={"": "mellum2"},
        hf_defaults={
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "norm_topk_prob": True,
            "partial_rotary_factor": 1.0,
            "rope_parameters": {
                "full_attention": {"rope_theta": 5e5},
                "sliding_attention": {"rope_theta": 1e4},
            },
            "sliding_window": 1024,
            "sliding_window_pattern": 1,
        },
    ),
    replace(
        LLAMA,
        name="granitemoe",
        model_types=("granitemoe", "granitemoeshared"),
        tensors={**WITHOUT_FFN, **GRANITE_EXPERTS},
        experts=Mixture(maybe_shared=True),
        biases={"attention_bias": ATTENTION},
        multipliers=True,
        default_pre={"": "refact"},
        hf_keys={
            "moe_intermediate_size": "intermediate_size",
            "shared_expert_intermediate_size": "shared_intermediate_size",
        },
        hf_defaults={"num_experts": 8, "num_experts_per_tok": 2},
    ),
)
