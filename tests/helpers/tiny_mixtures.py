"""Tiny random-weight `transformers` models that are mixtures of experts, as odd as `tiny_models`."""

from collections.abc import Callable
from typing import Any

from helpers.tiny_models import DELTA_NETS, SHORT_CONVS, SIZES, Model, nemotron_h

NOT_IN_GGUF = {"qwen3moe-not-normalised", "lfm2moe-scaled"}
"""What GGUF has no key for."""


def tiny_mixtures() -> dict[str, Callable[[], Model]]:
    """Name -> builder of the model, for `tiny_models.save`."""
    return {
        "qwen3moe": qwen3moe,
        "qwen3moe-not-normalised": lambda: qwen3moe(norm_topk_prob=False, num_experts=10),
        "mixtral": mixtral,
        "qwen2moe": qwen2moe,
        "olmoe": olmoe,
        "qwen35moe": qwen35moe,
        "qwen3next": qwen3next,
        "lfm2moe": lfm2moe,
        "lfm2moe-scaled": lambda: lfm2moe(routed_scaling_factor=1.7),
        "nemotron-h-moe": nemotron_h_moe,
        "gpt-oss": gpt_oss,
        "gpt-oss-yarn-between": lambda: gpt_oss(theta=200.0),
    }


def gpt_oss(theta: float = 132.15, **options: Any) -> Model:
    """YaRN's ramp ends at a whole dimension, just, where `theta` is the usual one."""
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {
        "num_hidden_layers": 4,
        "intermediate_size": 23,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "sliding_window": 7,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
    }
    return GptOssForCausalLM(GptOssConfig(**SIZES | sizes | options))


def lfm2moe(**options: Any) -> Model:
    """A dense layer, then mixtures selected by biased scores."""
    from transformers import Lfm2MoeConfig, Lfm2MoeForCausalLM

    sizes = {
        "moe_intermediate_size": 23,
        "num_experts": 10,
        "num_experts_per_tok": 3,
        "num_dense_layers": 1,
    }
    return Lfm2MoeForCausalLM(Lfm2MoeConfig(**SIZES | SHORT_CONVS | sizes | options))


def nemotron_h_moe(**options: Any) -> Model:
    sizes = {
        "layers_block_type": ["mamba", "moe", "mamba", "attention", "moe", "mamba"],
        "moe_intermediate_size": 23,
        "moe_shared_expert_intermediate_size": 37,
        "n_routed_experts": 10,
        "num_experts_per_tok": 3,
        "routed_scaling_factor": 1.7,
    }
    return nemotron_h(**sizes | options)


def qwen3moe(**options: Any) -> Model:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "moe_intermediate_size": 23,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES | sizes | options))


def mixtral(**options: Any) -> Model:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "num_local_experts": 10,
        "num_experts_per_tok": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
    }
    return MixtralForCausalLM(MixtralConfig(**SIZES | sizes | options))


def qwen2moe(**options: Any) -> Model:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 23,
        "shared_expert_intermediate_size": 37,
        "num_experts": 10,
        "num_experts_per_tok": 3,
    }
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES | sizes | options))


_SHARED = {
    "moe_intermediate_size": 23,
    "shared_expert_intermediate_size": 37,
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "rms_norm_eps": 1e-6,  # which llama.cpp takes for that of unit keys, too
}


def qwen35moe(**options: Any) -> Model:
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    return Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**SIZES | DELTA_NETS | _SHARED | options))


def qwen3next(**options: Any) -> Model:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    return Qwen3NextForCausalLM(Qwen3NextConfig(**SIZES | DELTA_NETS | _SHARED | options))


def olmoe(**options: Any) -> Model:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 23,
        "num_experts": 6,
        "num_experts_per_tok": 3,
    }
    return OlmoeForCausalLM(OlmoeConfig(**SIZES | sizes | options))
