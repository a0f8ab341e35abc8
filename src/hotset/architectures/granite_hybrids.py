"""The rows of Granite 4's hybrids: Mamba-2 or attention without positions, then an FFN or a mixture."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotset.architectures.dense import ATTENTION, LLAMA, LLAMA_TENSORS
from hotset.architectures.mixtures import WITHOUT_FFN
from hotset.architectures.row import Mixture
from hotset.architectures.single_parts import MAMBA_SHAPES, layer_kinds

_LAYER = "model.layers.{}."
_MAMBA = {
    "ssm_in": _LAYER + "mamba.in_proj",
    "ssm_conv1d": _LAYER + "mamba.conv1d",
    "ssm_dt": _LAYER + "mamba.dt_bias",
    "ssm_a": _LAYER + "mamba.A_log",
    "ssm_d": _LAYER + "mamba.D",
    "ssm_norm": _LAYER + "mamba.norm",
    "ssm_out": _LAYER + "mamba.out_proj",
}


def _as_nemotron(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Mamba-2's numbers by Nemotron-H's names."""
    heads, head = config.get("mamba_n_heads", 128), config.get("mamba_d_head", "auto")
    hidden, expand = config.get("hidden_size", 4096), config.get("mamba_expand", 2)
    if head == "auto" and isinstance(heads, int) and isinstance(hidden, int) and isinstance(expand, int):
        head = expand * hidden // max(heads, 1)
    if config.get("num_local_experts") == 0:
        config = {key: value for key, value in config.items() if key != "num_local_experts"}
    return {
        **config,
        "conv_kernel": config.get("mamba_d_conv", 4),
        "layers_block_type": layer_kinds({"layers_block_type": config.get("layer_types")}),
        "mamba_head_dim": head,
        "mamba_num_heads": heads,
        "n_groups": config.get("mamba_n_groups", 1),
        "ssm_state_size": config.get("mamba_d_state", 256),
        "use_conv_bias": config.get("mamba_conv_bias", True),
    }


_DENSE = replace(
    LLAMA,
    name="granitehybrid",
    model_types=("granitemoehybrid",),
    tensors={
        **LLAMA_TENSORS,
        **_MAMBA,
        "ffn_gate_up": _LAYER + "shared_mlp.input_linear",
        "ffn_down": _LAYER + "shared_mlp.output_linear",
    },
    shapes=MAMBA_SHAPES,
    biases={"attention_bias": ATTENTION, "use_conv_bias": ("ssm_conv1d",)},
    positions=False,
    multipliers=True,
    default_pre={"": "refact"},
    hf_keys={"intermediate_size": "shared_intermediate_size"},
    hf_defaults={"use_conv_bias": True},
    hf_required={"hidden_act": "silu", "mamba_proj_bias": False, "position_embedding_type": "nope"},
    hf_adapt=_as_nemotron,
)

GRANITE_HYBRIDS = (
    _DENSE,
    replace(
        _DENSE,
        tensors={
            **WITHOUT_FFN,
            **_MAMBA,
            "ffn_gate_inp": _LAYER + "block_sparse_moe.router.layer",
            "ffn_gate_exps": _LAYER + "block_sparse_moe.gate",
            "ffn_up_exps": _LAYER + "block_sparse_moe.up",
            "ffn_gate_up_exps": _LAYER + "block_sparse_moe.input_linear",
            "ffn_down_exps": _LAYER + "block_sparse_moe.output_linear",
            "ffn_gate_up_shexp": _LAYER + "shared_mlp.input_linear",
            "ffn_gate_shexp": _LAYER + "shared_mlp.gate",
            "ffn_up_shexp": _LAYER + "shared_mlp.up",
            "ffn_down_shexp": _LAYER + "shared_mlp.output_linear",
        },
        experts=Mixture(),
        hf_keys={
            "moe_intermediate_size": "intermediate_size",
            "shared_expert_intermediate_size": "shared_intermediate_size",
        },
        hf_defaults={**_DENSE.hf_defaults, "num_experts": 8, "num_experts_per_tok": 2},
    ),
)
