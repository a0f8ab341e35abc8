"""Writes a tiny `transformers` model as GGUF, with the `gguf` library's own table of names.

It follows llama.cpp's conversion: Llama's q and k rows are permuted for interleaved RoPE, norms stored minus
one have it added, Falcon's fused matrix is regrouped, Llama 3's RoPE scaling becomes a tensor of factors.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray

from helpers import gguf_delta_net, gguf_latent, gguf_mamba

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "qwen3_5_text": MODEL_ARCH.QWEN35,
    "qwen3_5_moe_text": MODEL_ARCH.QWEN35MOE,
    "qwen3_next": MODEL_ARCH.QWEN3NEXT,
    "lfm2": MODEL_ARCH.LFM2,
    "lfm2_moe": MODEL_ARCH.LFM2MOE,
    "nemotron_h": MODEL_ARCH.NEMOTRON_H,
    "falcon": MODEL_ARCH.FALCON,
    "nemotron": MODEL_ARCH.NEMOTRON,
    "mixtral": MODEL_ARCH.LLAMA,
    "qwen3_moe": MODEL_ARCH.QWEN3MOE,
    "qwen2_moe": MODEL_ARCH.QWEN2MOE,
    "olmoe": MODEL_ARCH.OLMOE,
    "gpt_oss": MODEL_ARCH.GPT_OSS,
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite"), MODEL_ARCH.DEEPSEEK2),
}
# llama.cpp has no OPT: these are Hotset's own names, made of GGUF's usual ones.
OPT_NAMES = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "final_layer_norm": "output_norm",
}
OPT_LAYER_NAMES = {
    "self_attn_layer_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "final_layer_norm": "ffn_norm",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}


def export_gguf(
    model: Any, path: Path, kind: Q = Q.F32, *, activation: str | None = None, split: bool = True
) -> None:
    """Write `model` with its matrices as `kind`, and round the model's own to the same numbers.

    The `gguf` library cannot quantise to K-quants: those become random blocks, in the file and in the model.
    """
    import torch

    config = model.config
    writer = gguf.GGUFWriter(path, _architecture(config))
    _write_metadata(writer, config, split)
    if activation:
        writer.add_string("hotset.activation", activation)

    rename = _names(config)
    ends = ("expert_bias", "e_score_correction_bias")
    biases = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith(ends)]
    for hf_name, parameter in [*model.named_parameters(), *biases]:  # a tied output comes once
        floats = parameter.ndim < 2 or hf_name.endswith(("mlp.gate.weight", "router.weight", "_bias"))
        tensor_kind = Q.F32 if floats else kind
        for part, values in _parts(hf_name, parameter.detach(), config, split):
            data = quantise(values.numpy(), tensor_kind)
            values.copy_(torch.from_numpy(gguf.dequantize(data, tensor_kind)))
            writer.add_tensor(rename(part), _adapt(part, data, config), raw_dtype=tensor_kind)
    if _rope(config).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _parts(name: str, tensor: Any, config: Any, split: bool) -> list[tuple[str, Any]]:
    """A tensor, or the parts that llama.cpp's converter cuts it into, as views, by Hugging Face's names."""
    if name.endswith(gguf_latent.KV_B) and split:
        return gguf_latent.parts(name, tensor, config)
    if ".experts." not in name:
        return [(name, tensor)]
    turned = config.model_type == "gpt_oss"
    suffix = ".bias" if name.endswith("_bias") else ".weight"
    bare = name.removesuffix("_bias")
    if turned and suffix == ".weight":
        tensor = tensor.transpose(1, 2)
    if not bare.endswith("gate_up_proj"):
        return [(bare + suffix, tensor)]
    halves = (tensor[:, ::2], tensor[:, 1::2]) if turned else tensor.chunk(2, dim=1)
    names = [bare.replace("gate_up", part) + suffix for part in ("gate", "up")]
    return list(zip(names, halves, strict=True))


def quantise(values: NDArray[np.float32], kind: Q) -> NDArray[Any]:
    """Rows of `values` as `kind`: floats, or each row's bytes; for K-quants random blocks of their size."""
    if kind not in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
        return gguf.quantize(values, kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(values.shape[0])
    blocks = rng.integers(0, 256, (values.size // block, block_bytes), dtype=np.uint8)
    # Deviation of quant times group scale, and the quants' centre: the numbers are to deviate as the values.
    deviation, centre = {Q.Q4_K: (4.6 * 36.4, 7.5), Q.Q5_K: (9.2 * 36.4, 15.5), Q.Q6_K: (18.5 * 73.9, 0)}[
        kind
    ]
    scale = rng.uniform(0.5, 1.5, (len(blocks), 1)) * values.std() / deviation
    if kind is Q.Q6_K:
        blocks[:, -2:] = scale.astype("<f2").view(np.uint8)
    else:
        blocks[:, :2] = scale.astype("<f2").view(np.uint8)
        blocks[:, 2:4] = (centre * scale).astype("<f2").view(np.uint8)
    return blocks.reshape(values.shape[0], -1)


def _write_metadata(writer: gguf.GGUFWriter, config: Any, split: bool) -> None:
    heads = config.num_attention_heads
    kv_heads = _kv_heads(config)
    head_dim = _head_dim(config)
    rope = _rope(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    if config.model_type == "nemotron_h":
        gguf_mamba.write_keys(writer, config)
        return
    if hasattr(config, "kv_lora_rank"):
        writer.add_feed_forward_length(config.intermediate_size)
        gguf_latent.write_keys(writer, config, split=split)
        return
    size = _first(config, "ffn_hidden_size", "ffn_dim", "intermediate_size")
    writer.add_feed_forward_length(40 if config.model_type == "lfm2" else size)  # a rule's result
    _write_experts(writer, config)
    writer.add_head_count(heads)
    if config.model_type.startswith("lfm2"):
        writer.add_head_count_kv([0 if kind == "conv" else kv_heads for kind in config.layer_types])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if rope:
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type in ("falcon", "nemotron", "opt"):
        writer.add_layer_norm_eps(_first(config, "norm_eps", "layer_norm_epsilon", default=1e-5))
    else:
        writer.add_layer_norm_rms_eps(
            config.norm_eps if config.model_type.startswith("lfm2") else config.rms_norm_eps
        )
    if hasattr(config, "linear_num_value_heads"):
        gguf_delta_net.write_keys(writer, config)
    if config.model_type in ("gemma3_text", "gpt_oss"):
        writer.add_sliding_window(config.sliding_window)
    if cap := _first(config, "final_logit_softcapping"):
        writer.add_final_logit_softcapping(cap)


def _write_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    if count := _first(config, "num_experts", "num_local_experts"):
        writer.add_expert_count(count)
        writer.add_expert_used_count(config.num_experts_per_tok)
    own = ("intermediate_size",) if config.model_type == "gpt_oss" else ("moe_intermediate_size",)
    if size := _first(config, *own):
        writer.add_expert_feed_forward_length(size)
    if config.model_type == "lfm2_moe":
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if size := _first(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(size)


def _architecture(config: Any) -> str:
    return "opt" if config.model_type == "opt" else gguf.MODEL_ARCH_NAMES[_kind(config)]


def _kind(config: Any) -> MODEL_ARCH:
    if config.model_type == "nemotron_h" and "moe" in config.layers_block_type:
        return MODEL_ARCH.NEMOTRON_H_MOE
    return ARCHITECTURES[config.model_type]


def _names(config: Any) -> Callable[[str], str]:
    """From Hugging Face's names to GGUF's."""
    if config.model_type == "opt":

        def rename(name: str) -> str:
            module, suffix = name.removeprefix("model.decoder.").rsplit(".", 1)
            if not module.startswith("layers."):
                return f"{OPT_NAMES[module]}.{suffix}"
            _, layer, module = module.split(".", 2)
            return f"blk.{layer}.{OPT_LAYER_NAMES[module]}.{suffix}"

        return rename
    names = gguf.get_tensor_name_map(_kind(config), config.num_hidden_layers)

    def with_suffix(name: str) -> str:
        if config.model_type == "nemotron_h":
            name = gguf_mamba.renamed(name)
        name = name.replace(".dt_bias", ".dt_proj.bias").replace(".expert_bias", ".expert_bias.bias")
        name = name.replace("gate.e_score_correction_bias", "gate.e_score_correction.bias")
        if name.endswith((".A_log", ".D")):
            return names.get_name(name)
        suffixed = f"{name}.weight" if name.endswith("sinks") else name
        return names.get_name(suffixed, try_suffixes=(".weight", ".bias"))

    return with_suffix


def _first(config: Any, *keys: str, default: Any = None) -> Any:
    return next((getattr(config, key) for key in keys if getattr(config, key, None)), default)


def _rope(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def _head_dim(config: Any) -> int:
    return _first(config, "head_dim", default=config.hidden_size // config.num_attention_heads)


def _kv_heads(config: Any) -> int:
    if config.model_type == "falcon" and config.multi_query and not config.new_decoder_architecture:
        return 1
    return _first(config, "num_kv_heads", "num_key_value_heads", default=config.num_attention_heads)


def _adapt(name: str, values: NDArray[Any], config: Any) -> NDArray[Any]:
    """The rows as llama.cpp wants them."""
    head_dim = _head_dim(config)
    if name.endswith("conv.conv.weight") or config.model_type == "nemotron_h":
        return gguf_mamba.adapt(name, values, config)
    if "linear_attn." in name:
        return gguf_delta_net.adapt(name, values, config)
    minus_one = ("gemma3_text", "nemotron", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
    if name.endswith("norm.weight") and config.model_type in minus_one:
        return values + 1
    if ".q_proj." in name or ".k_proj." in name:
        if config.model_type in ("llama", "mixtral"):  # (i, i + head_dim / 2) become neighbours
            pairs = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
            return pairs.swapaxes(1, 2).reshape(values.shape)
    elif ".query_key_value." in name:
        kv_heads = _kv_heads(config)
        groups = values.reshape(kv_heads, -1, head_dim, *values.shape[1:])
        parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    return values


def _llama3_factors(config: Any) -> NDArray[np.float32]:
    """By what each frequency is divided (the Llama 3.1 model card's rule)."""
    rope = config.rope_parameters
    low, high, context = (
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )
    head_dim = _head_dim(config)
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        smooth = (context / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)
