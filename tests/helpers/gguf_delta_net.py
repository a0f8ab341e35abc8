"""How llama.cpp's conversion writes gated delta nets: value heads tiled over key heads, decays negative."""

from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray


def write_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    """The shape of the delta nets, and which layers are."""
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)
    if "mrope_section" in config.rope_parameters and config.model_type != "qwen3_next":
        writer.add_rope_dimension_sections([*config.rope_parameters["mrope_section"], 0])
    writer.add_array(
        f"{writer.arch}.attention.recurrent_layers",
        [kind == "linear_attention" for kind in config.layer_types],
    )


def adapt(name: str, values: NDArray[Any], config: Any) -> NDArray[Any]:
    """A tensor of Hugging Face's `linear_attn` as GGUF has it."""
    heads, keys, d = (
        config.linear_num_value_heads,
        config.linear_num_key_heads,
        config.linear_value_head_dim,
    )
    # Head h of key head h // group becomes head h % keys.
    order = np.arange(heads).reshape(keys, -1).T.ravel()
    numbers = (order[:, None] * d + np.arange(d)).ravel()
    part = name.split("linear_attn.")[1]
    if config.model_type == "qwen3_next":  # which leaves the heads where they are
        order, numbers = np.arange(heads), np.arange(heads * d)
    if part == "A_log":
        return -np.exp(values)[order]
    if part in ("dt_bias", "in_proj_b.weight", "in_proj_a.weight"):
        return values[order]
    if part == "in_proj_z.weight":
        return values[numbers]
    if part == "out_proj.weight":
        return np.ascontiguousarray(values[:, numbers])
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        values = values.reshape(values.shape[0], -1)
        return np.concatenate([values[: 2 * keys * d], values[2 * keys * d :][numbers]])
    return values
