"""How llama.cpp's conversion writes Nemotron-H: numbers for each layer, Mamba-2's vectors as columns."""

from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray


def write_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    """All keys after the number of blocks; RoPE's, which llama.cpp's files have, mean nothing."""
    kinds = config.layers_block_type
    size = config.moe_intermediate_size if "moe" in kinds else config.intermediate_size
    writer.add_feed_forward_length([size if kind in ("mlp", "moe") else 0 for kind in kinds])
    heads = config.num_key_value_heads
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv([heads if "attention" in kind and "linear" not in kind else 0 for kind in kinds])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_state_size(config.ssm_state_size)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_ssm_inner_size(config.mamba_num_heads * config.mamba_head_dim)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)
    if "moe" in kinds:
        writer.add_expert_count(config.n_routed_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_group_count(config.n_group)


def renamed(name: str) -> str:
    """A tensor's name as the `gguf` library's table has it."""
    if ".mixer.experts." in name:
        return name.replace(".mixer.", ".mlp.")
    return name.replace("model.", "backbone.", 1).replace("correction_bias", "correction.bias")


def adapt(name: str, values: NDArray[Any], config: Any) -> NDArray[Any]:
    """A tensor as GGUF has it."""
    if name.endswith("A_log"):
        return -np.exp(values)[:, None]
    if name.endswith("mixer.D"):
        return values[:, None]
    if name.endswith("mixer.norm.weight"):
        return values.reshape(config.n_groups, -1)
    return values[:, 0] if name.endswith(("conv1d.weight", "conv.conv.weight")) else values
