"""The rows of families of which most layers are Mamba-2.

Nemotron-H's layers are of one part each: Mamba-2, attention, an FFN or a mixture. Granite 4's have Mamba-2 or
attention without positions, and then an FFN or a mixture; its smallest models have attention with RoPE alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotset.architectures.dense import ATTENTION, LLAMA, LLAMA_TENSORS
from hotset.architectures.mixtures import GRANITE_EXPERTS, WITHOUT_FFN
from hotset.architectures.row import Architecture, Mixture
from hotset.core.config import Activation, Gating
from hotset.core.errors import CheckpointError

_LAYER = "model.layers.{}."
_KINDS = {
    **{"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"},
    **{"linear_attention": "mamba", "full_attention": "attention"},
}


def layer_kinds(config: Mapping[str, Any]) -> list[Any]:
    """What each layer of config.json is: mamba, attention, mlp or moe; empty: it does not say."""
    stated = config.get("hybrid_override_pattern") or config.get("layers_block_type") or []
    if not isinstance(stated, str | list):
        return []
    return [_KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in stated]


def _with_kinds(config: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds = layer_kinds(config)
    if not kinds:
        raise CheckpointError(
            "layers_block_type: expected each layer's kind, as mamba or attention, found none"
        )
    return {**config, "layers_block_type": kinds, "num_hidden_layers": len(kinds)}


def _module(name: str) -> str:
    return "|".join(f"{base}.layers.{{}}.{name}" for base in ("backbone", "model"))


_TENSORS = {
    "token_embd": "backbone.embeddings|model.embeddings",
    "output_norm": "backbone.norm_f|model.norm_f",
    "output": "lm_head",
    "attn_norm": _module("norm"),
    "attn_q": _module("mixer.q_proj"),
    "attn_k": _module("mixer.k_proj"),
    "attn_v": _module("mixer.v_proj"),
    "attn_output": _module("mixer.o_proj"),
    "ssm_in": _module("mixer.in_proj"),
    "ssm_conv1d": _module("mixer.conv1d"),
    "ssm_dt": _module("mixer.dt_bias"),
    "ssm_a": _module("mixer.A_log"),
    "ssm_d": _module("mixer.D"),
    "ssm_norm": _module("mixer.norm"),
    "ssm_out": _module("mixer.out_proj"),
}
_SHAPES = {
    # I rows of Mamba's input, C channels, W kernel, T heads, Z their values.
    "ssm_in": "ID",
    "ssm_conv1d": "CW",
    "ssm_dt": "T",
    "ssm_a": "T",
    "ssm_d": "T",
    "ssm_norm": "Z",
    "ssm_out": "DZ",
}
_NEMOTRON_H = Architecture(
    name="nemotron_h",
    model_types=("nemotron_h",),
    activation=Activation.RELU2,
    tensors={**_TENSORS, "ffn_up": _module("mixer.up_proj"), "ffn_down": _module("mixer.down_proj")},
    shapes=_SHAPES,
    biases={"use_conv_bias": ("ssm_conv1d",)},
    positions=False,
    default_pre={"": "pixtral"},
    hf_keys={"norm_eps": "layer_norm_epsilon", "hidden_act": "mlp_hidden_act"},
    hf_defaults={
        "conv_kernel": 4,
        "max_position_embeddings": 4096,
        "n_group": 1,
        "norm_eps": 1e-5,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "use_conv_bias": True,
    },
    hf_required={
        "attention_bias": False,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": False,
        "mlp_bias": False,
        "moe_latent_size": None,
        "sliding_window": None,
        "use_bias": False,
    },
    hf_adapt=_with_kinds,
)
_GRANITE_MAMBA = {
    "ssm_in": _LAYER + "mamba.in_proj",
    "ssm_conv1d": _LAYER + "mamba.conv1d",
    "ssm_dt": _LAYER + "mamba.dt_bias",
    "ssm_a": _LAYER + "mamba.A_log",
    "ssm_d": _LAYER + "mamba.D",
    "ssm_norm": _LAYER + "mamba.norm",
    "ssm_out": _LAYER + "mamba.out_proj",
}


def _without_experts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What says that there are no experts is left out."""
    return {key: value for key, value in config.items() if (key, value) != ("num_local_experts", 0)}


def _as_nemotron(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Mamba-2's numbers by Nemotron-H's names."""
    heads, head = config.get("mamba_n_heads", 128), config.get("mamba_d_head", "auto")
    hidden, expand = config.get("hidden_size", 4096), config.get("mamba_expand", 2)
    if head == "auto" and isinstance(heads, int) and isinstance(hidden, int) and isinstance(expand, int):
        head = expand * hidden // max(heads, 1)
    return {
        **_without_experts(config),
        "conv_kernel": config.get("mamba_d_conv", 4),
        "layers_block_type": layer_kinds({"layers_block_type": config.get("layer_types")}),
        "mamba_head_dim": head,
        "mamba_num_heads": heads,
        "n_groups": config.get("mamba_n_groups", 1),
        "ssm_state_size": config.get("mamba_d_state", 256),
        "use_conv_bias": config.get("mamba_conv_bias", True),
    }


# The small ones have attention alone, and RoPE: Granite 3's models but for the FFN's names.
_GRANITE_PLAIN = replace(
    LLAMA,
    name="granite",
    model_types=("granitemoehybrid",),
    tensors={
        **LLAMA_TENSORS,
        "ffn_gate_up": _LAYER + "shared_mlp.input_linear",
        "ffn_down": _LAYER + "shared_mlp.output_linear",
    },
    multipliers=True,
    default_pre={"": "refact"},
    hf_keys={"intermediate_size": "shared_intermediate_size"},
    hf_required={"hidden_act": "silu", "position_embedding_type": "rope"},
    hf_adapt=_without_experts,
)
_GRANITE = replace(
    _GRANITE_PLAIN,
    name="granitehybrid",
    tensors={**_GRANITE_PLAIN.tensors, **_GRANITE_MAMBA},
    shapes=_SHAPES,
    biases={"attention_bias": ATTENTION, "use_conv_bias": ("ssm_conv1d",)},
    positions=False,
    hf_defaults={"use_conv_bias": True},
    hf_required={"hidden_act": "silu", "mamba_proj_bias": False, "position_embedding_type": "nope"},
    hf_adapt=_as_nemotron,
)

MAMBA: tuple[Architecture, ...] = (
    _NEMOTRON_H,
    replace(
        _NEMOTRON_H,
        name="nemotron_h_moe",
        tensors={
            **_TENSORS,
            "ffn_gate_inp": _module("mixer.gate"),
            "exp_probs_b": _module("mixer.gate.e_score_correction_bias"),
            "ffn_up_exps": _module("mixer.experts.*.up_proj") + "|" + _module("mixer.experts.up_proj"),
            "ffn_down_exps": _module("mixer.experts.*.down_proj") + "|" + _module("mixer.experts.down_proj"),
            "ffn_up_shexp": _module("mixer.shared_experts.up_proj"),
            "ffn_down_shexp": _module("mixer.shared_experts.down_proj"),
        },
        experts=Mixture(gating=Gating.SIGMOID),
        hf_keys={
            **_NEMOTRON_H.hf_keys,
            "num_experts": "n_routed_experts",
            "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
        },
        hf_required={**_NEMOTRON_H.hf_required, "n_shared_experts": 1},
    ),
    _GRANITE,
    replace(
        _GRANITE,
        tensors={**WITHOUT_FFN, **_GRANITE_MAMBA, **GRANITE_EXPERTS},
        experts=Mixture(),
        hf_keys={
            "moe_intermediate_size": "intermediate_size",
            "shared_expert_intermediate_size": "shared_intermediate_size",
        },
        hf_defaults={**_GRANITE.hf_defaults, "num_experts": 8, "num_experts_per_tok": 2},
    ),
    _GRANITE_PLAIN,
)
