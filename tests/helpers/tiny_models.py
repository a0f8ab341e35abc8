"""Tiny random-weight `transformers` models, one for every architecture and option that Hotset runs.

Their sizes are odd on purpose: no multiple of 32, odd head counts, heads that do not add up to the hidden
size. Their weights are large: norms far from one, biases far from zero, attention far from uniform. So a
mistake shows.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 101
CONTEXT = 128

Model = Any  # a transformers.PreTrainedModel; the import takes seconds, so it happens inside functions


def tiny_models() -> dict[str, Callable[[], Model]]:
    """Name -> builder of the model, on which `save` puts weights and configuration into a directory."""
    llama_scaling = {
        "llama3": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "linear": {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.5},
        "yarn": {
            "rope_type": "yarn",
            "rope_theta": 600.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }
    models: dict[str, Callable[[], Model]] = {
        f"llama-{act}": lambda act=act: llama(hidden_act=act)
        for act in ("silu", "relu", "drelu", "relu2", "gelu", "gelu_pytorch_tanh")
    }
    for name, scaling in llama_scaling.items():
        models[f"llama-rope-{name}"] = lambda scaling=scaling: llama(rope_parameters=scaling)
    return models | {
        "llama-mqa-tied": lambda: llama(num_key_value_heads=1, head_dim=14, tie_word_embeddings=True),
        "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True),
        "mistral": mistral,
        "qwen2": qwen2,
        "qwen3": qwen3,
        "qwen35": qwen35,
        "qwen35-tied": lambda: qwen35(tie_word_embeddings=True),
        "qwen35-usual-epsilon": lambda: qwen35(rms_norm_eps=1e-6),
        "lfm2": lfm2,
        "nemotron-h": nemotron_h,
        "gemma3": gemma3,
        "gemma3-own-pattern": gemma3_own_pattern,
        "gemma3-capped": lambda: gemma3(final_logit_softcapping=3.0),
        "falcon-7b": falcon_7b,
        "falcon-40b": falcon_40b,
        "falcon-11b": lambda: falcon_40b(num_ln_in_parallel_attn=1),
        "falcon-biases": lambda: falcon_7b(multi_query=False, bias=True),
        "opt": opt,
        "nemotron": nemotron,
        "minitron": lambda: nemotron(hidden_size=42, head_dim=12),
    }


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 45,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 0.02,
}


SHORT_CONVS = {
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
    "conv_L_cache": 4,
    "block_multiple_of": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
}
DELTA_NETS = {
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "layer_types": [f"{kind}_attention" for kind in ("linear", "linear", "full", "linear", "full")],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 300.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    },
}


def llama(hidden_act: str = "silu", **options: Any) -> Model:
    from torch.nn.functional import relu
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 10}
    transformers_act = "relu" if hidden_act == "drelu" else hidden_act
    model = LlamaForCausalLM(LlamaConfig(**SIZES | heads | {"hidden_act": transformers_act} | options))
    if hidden_act == "drelu":  # which transformers does not have: ReLU on gate and on up
        for layer in model.model.layers:
            mlp = layer.mlp
            mlp.forward = lambda x, m=mlp: m.down_proj(relu(m.gate_proj(x)) * relu(m.up_proj(x)))
        model.config.hidden_act = "drelu"
    return model


def mistral() -> Model:
    from transformers import MistralConfig, MistralForCausalLM

    heads = {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 6}
    return MistralForCausalLM(MistralConfig(**SIZES | heads, sliding_window=7))


def qwen2() -> Model:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(**SIZES | {"hidden_size": 42}, num_attention_heads=7, num_key_value_heads=1)
    )


def qwen3() -> Model:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 12}
    return Qwen3ForCausalLM(Qwen3Config(**SIZES | heads, tie_word_embeddings=True))


def qwen35(**options: Any) -> Model:
    """Delta nets with three value heads to a key head, one layer in three with attention."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SIZES | DELTA_NETS | options))


def lfm2(**options: Any) -> Model:
    """Short convolutions, two layers in five with attention."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return Lfm2ForCausalLM(Lfm2Config(**SIZES | SHORT_CONVS | options))


def nemotron_h(**options: Any) -> Model:
    """Layers of one part each; the heads of Mamba-2 do not add up to twice the hidden size."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    sizes = {
        "hidden_size": 48,
        "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp", "mamba", "mlp"],
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "ssm_state_size": 12,
        "mamba_num_heads": 6,
        "mamba_head_dim": 10,
        "n_groups": 2,
        "layer_norm_epsilon": 0.02,
    }
    sizes = {name: size for name, size in (SIZES | sizes).items() if name != "num_hidden_layers"}
    model = NemotronHForCausalLM(NemotronHConfig(**sizes | options))
    for layer in model.model.layers:
        if layer.block_type in ("mamba", "linear_attention"):
            layer.mixer.time_step_limit = (0.0, float("inf"))  # transformers clamps it by mistake
    return model


def gemma3(**options: Any) -> Model:
    """Five local layers to one global, scaled as GGUF files can say it."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {
        "hidden_size": 42,
        "num_hidden_layers": 7,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "query_pre_attn_scalar": 14,
        "sliding_window": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES | sizes | options))


def gemma3_own_pattern() -> Model:
    """What only config.json can say: which layers are global, the local RoPE base, the attention's scale."""
    return gemma3(
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=20,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    )


def falcon_7b(**options: Any) -> Model:
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {
        "hidden_size": 50,
        "num_attention_heads": 5,
        "ffn_hidden_size": 56,
        "bias": False,
        "layer_norm_epsilon": 0.02,
        "tie_word_embeddings": True,
    }
    return FalconForCausalLM(FalconConfig(**SIZES | sizes | options))


def falcon_40b(**options: Any) -> Model:
    """Grouped queries, fused by group; two norms, or one with `num_ln_in_parallel_attn` = 1 (Falcon 2)."""
    sizes = {"hidden_size": 60, "num_attention_heads": 6, "num_kv_heads": 3, "tie_word_embeddings": False}
    return falcon_7b(new_decoder_architecture=True, **sizes | options)


def opt() -> Model:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=42,
            word_embed_proj_dim=42,
            ffn_dim=58,
            num_hidden_layers=3,
            num_attention_heads=3,
            max_position_embeddings=CONTEXT,
        )
    )


def nemotron(**options: Any) -> Model:
    from transformers import NemotronConfig, NemotronForCausalLM

    sizes = {
        "hidden_size": 72,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "norm_eps": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    }
    return NemotronForCausalLM(NemotronConfig(**SIZES | sizes | options))


MINUS_ONE = ("gemma2", "gemma3", "nemotron", "qwen3_5", "qwen3_next")
"""Families whose norms are stored minus one."""


def save(model: Model, directory: Path, *, dtype: str = "float32", seed: int = 0) -> None:
    """Give the model random weights, rounded to `dtype`, and save it as a Hugging Face directory."""
    import torch

    torch.set_num_threads(1)  # on such sizes more threads are slower
    generator = torch.Generator().manual_seed(seed)
    zero_is_neutral = any(name in model.config.model_type for name in MINUS_ONE)
    rounded = getattr(torch, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                values *= 0.3
            elif name.endswith(("A_log", "mixer.D")):
                values *= 0.7
            elif values.ndim == 1:  # a norm's
                values = 0.3 * values + (0 if zero_is_neutral and "linear_attn" not in name else 1)
            elif "conv1d" in name or "conv.conv" in name:
                values *= 0.7
            else:
                values *= 1.5 / parameter.shape[1] ** 0.5
            if model.config.model_type == "gpt_oss" and "gate_up_proj" in name:
                values *= 3  # so that some are clamped
            parameter.copy_(values.to(rounded).float())
        for name, buffer in model.named_buffers():
            if name.endswith(("expert_bias", "e_score_correction_bias")):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
        factors = [*model.named_buffers(), *model.named_parameters()]
        for _, factor in (f for f in factors if f[0].endswith(("layer_scalar", "per_expert_scale"))):
            factor.copy_(0.7 + 0.3 * torch.rand(factor.shape, generator=generator))
    model.eval()
    state = {name: values.to(rounded) for name, values in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=state)


def write_old_config(directory: Path) -> None:
    """Rewrite config.json as transformers 4 did, and most published models have it: no `rope_parameters`."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
        del config["layer_types"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    path.write_text(json.dumps(config))
