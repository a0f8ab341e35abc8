"""The rows of families whose layers are of one part each: Mamba-2, attention, an FFN or a mixture."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotset.architectures.row import Architecture, Mixture
from hotset.core.config import Activation, Gating
from hotset.core.errors import CheckpointError

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
MAMBA_SHAPES = {
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
    shapes=MAMBA_SHAPES,
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

SINGLE_PARTS: tuple[Architecture, ...] = (
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
)
