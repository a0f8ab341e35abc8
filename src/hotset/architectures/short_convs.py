"""The rows of families of which most layers are gated short convolutions."""

import math
from collections.abc import Mapping
from typing import Any

from hotset.architectures.mixtures import expert_tensors
from hotset.architectures.row import Architecture, Mixture
from hotset.core.config import Activation, Gating
from hotset.core.errors import CheckpointError

_LAYER = "model.layers.{}."
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.embedding_norm",
    "output": "lm_head",
    "attn_norm": _LAYER + "operator_norm",
    "attn_q": _LAYER + "self_attn.q_proj",
    "attn_k": _LAYER + "self_attn.k_proj",
    "attn_v": _LAYER + "self_attn.v_proj",
    "attn_output": _LAYER + "self_attn.out_proj",
    "attn_q_norm": _LAYER + "self_attn.q_layernorm",
    "attn_k_norm": _LAYER + "self_attn.k_layernorm",
    "shortconv_in": _LAYER + "conv.in_proj",
    "shortconv_conv": _LAYER + "conv.conv",
    "shortconv_out": _LAYER + "conv.out_proj",
    "ffn_norm": _LAYER + "ffn_norm",
    "ffn_gate": _LAYER + "feed_forward.w1",
    "ffn_up": _LAYER + "feed_forward.w3",
    "ffn_down": _LAYER + "feed_forward.w2",
}
_SHAPES = {"shortconv_in": "UD", "shortconv_conv": "CW", "shortconv_out": "DD"}
_GGUF_NAMES = {
    "token_embd_norm": "output_norm",  # Ollama's files say output_norm
    "shortconv.in_proj": "shortconv_in",
    "shortconv.conv": "shortconv_conv",
    "shortconv.out_proj": "shortconv_out",
}
_HF_DEFAULTS = {
    "conv_L_cache": 3,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_HF_REQUIRED = {"conv_bias": False, "hidden_act": "silu", "sliding_window": None}


def _with_ffn_size(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The FFN's width, which config.json tells by a rule. Raises `CheckpointError` for odd numbers in it."""
    size = config.get("block_ff_dim", config.get("intermediate_size", 12288))
    if config.get("block_auto_adjust_ff_dim", True) and isinstance(size, int):
        size = 2 * size // 3
        factor, unit = config.get("block_ffn_dim_multiplier", 1.0), config.get("block_multiple_of", 256)
        for key, number in (("block_ffn_dim_multiplier", factor), ("block_multiple_of", unit)):
            if not isinstance(number, int | float) or not 0 < number < math.inf:
                raise CheckpointError(f"{key}: expected a number over 0, found {number!r:.40}")
        size = math.ceil(int(factor * size) / unit) * unit
    tied = config.get("tie_embedding", config.get("tie_word_embeddings", True))
    return {**config, "intermediate_size": size, "tie_word_embeddings": tied}


SHORT_CONVS: tuple[Architecture, ...] = (
    Architecture(
        name="lfm2",
        model_types=("lfm2",),
        activation=Activation.SILU,
        tensors=_TENSORS,
        shapes=_SHAPES,
        gguf_names=_GGUF_NAMES,
        default_pre={"": "lfm2"},
        hf_keys={"norm_eps": "norm_eps"},
        hf_defaults=_HF_DEFAULTS,
        hf_required=_HF_REQUIRED,
        hf_adapt=_with_ffn_size,
    ),
    Architecture(
        name="lfm2moe",
        model_types=("lfm2_moe",),
        activation=Activation.SILU,
        tensors={
            **_TENSORS,
            **expert_tensors("feed_forward", "w1", "w3", "w2"),
            "exp_probs_b": _LAYER + "feed_forward.expert_bias",
        },
        experts=Mixture(gating=Gating.SIGMOID),
        shapes=_SHAPES,
        gguf_names=_GGUF_NAMES,
        optional=frozenset({"output", "exp_probs_b"}),
        default_pre={"": "lfm2"},
        hf_flags={"use_expert_bias": "exp_probs_b.bias"},
        hf_keys={"norm_eps": "norm_eps", "first_k_dense_replace": "num_dense_layers"},
        hf_defaults={
            **_HF_DEFAULTS,
            "first_k_dense_replace": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "use_expert_bias": True,
        },
        hf_required=_HF_REQUIRED,
    ),
)
