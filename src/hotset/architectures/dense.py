"""The rows of families whose layers have one FFN each."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotset.architectures.row import Architecture, Windows
from hotset.core.config import Activation, NormKind

QKV = ("attn_q", "attn_k", "attn_v")
ATTENTION = (*QKV, "attn_output")
FFN = ("ffn_gate", "ffn_up", "ffn_down")

LLAMA_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
QK_NORMS = {
    "attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_GEMMA3_TENSORS = {
    **LLAMA_TENSORS,
    **QK_NORMS,
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
# attn_norm_2 (Falcon-40B) is the attention's norm, and attn_norm the FFN's; without it attn_norm serves both.
_FALCON_TENSORS = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "transformer.h.{}.input_layernorm|transformer.h.{}.ln_mlp",
    "attn_norm_2": "transformer.h.{}.ln_attn",
    "attn_qkv": "transformer.h.{}.self_attention.query_key_value",
    "attn_output": "transformer.h.{}.self_attention.dense",
    "ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
    "ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
}
_OPT_TENSORS = {
    "token_embd": "model.decoder.embed_tokens",
    "position_embd": "model.decoder.embed_positions",
    "output_norm": "model.decoder.final_layer_norm",
    "output": "lm_head",
    "attn_norm": "model.decoder.layers.{}.self_attn_layer_norm",
    "attn_q": "model.decoder.layers.{}.self_attn.q_proj",
    "attn_k": "model.decoder.layers.{}.self_attn.k_proj",
    "attn_v": "model.decoder.layers.{}.self_attn.v_proj",
    "attn_output": "model.decoder.layers.{}.self_attn.out_proj",
    "ffn_norm": "model.decoder.layers.{}.final_layer_norm",
    "ffn_up": "model.decoder.layers.{}.fc1",
    "ffn_down": "model.decoder.layers.{}.fc2",
}


def _adapt_falcon(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Falcon's three attention layouts as a number of key/value heads, and its default FFN size."""
    hidden = config.get("hidden_size")
    adapted = {"ffn_hidden_size": 4 * hidden if isinstance(hidden, int) else None, **config}
    if config.get("new_decoder_architecture"):
        adapted["parallel_attn"] = True  # whatever the file says
    elif config.get("multi_query", True):
        adapted["num_kv_heads"] = 1
    return adapted


LLAMA = Architecture(
    name="llama",
    model_types=("llama",),
    activation=Activation.SILU,
    tensors=LLAMA_TENSORS,
    biases={"attention_bias": ATTENTION, "mlp_bias": FFN},
    gguf_rope_interleaved=True,
    default_pre={"<|begin_of_text|>": "llama-bpe"},
)
GEMMA3 = Architecture(
    name="gemma3",
    model_types=("gemma3_text",),
    activation=Activation.GELU_TANH,
    tensors=_GEMMA3_TENSORS,
    biases={"attention_bias": ATTENTION},
    norm_weight_plus_one=True,
    embedding_scaled=True,
    soft_caps=("final_logit_softcapping",),
    windows=Windows.PATTERN,
    local_rope_theta=1e4,
    gguf_hidden_scaled_depth=62,
    gguf_also={"rope.freq_base": "rope.global.freq_base", "rope.freq_base_swa": "rope.local.freq_base"},
    gguf_defaults={"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6},
    # The 4B, 12B and 27B.
    gguf_depth_defaults={layers: {"rope.scaling.factor": 8.0} for layers in (34, 48, 62)},
    hf_keys={"hidden_act": "hidden_activation"},
    hf_defaults={
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1e6,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "vocab_size": 262208,
    },
)
_MISTRAL = replace(
    LLAMA,
    model_types=("mistral",),
    biases={},
    windows=Windows.ALL,
    hf_defaults={"sliding_window": 4096, "max_position_embeddings": 131072},
)

DENSE: tuple[Architecture, ...] = (
    LLAMA,
    _MISTRAL,
    # ReLU on gate and up, though config.json says relu (arXiv 2406.05955).
    replace(
        _MISTRAL,
        name="bamboo",
        model_types=("bamboo", "turbosparse_mistral", "turbosparsemistral"),
        activation=Activation.DRELU,
        activations={"relu": Activation.DRELU, "drelu": Activation.DRELU},
    ),
    Architecture(
        name="qwen2",
        model_types=("qwen2",),
        activation=Activation.SILU,
        tensors=LLAMA_TENSORS,
        biases={"attention_bias": QKV},
        windows=Windows.LATE,
        default_pre={"": "qwen2"},
        hf_defaults={"attention_bias": True, "max_position_embeddings": 32768},
    ),
    Architecture(
        name="qwen3",
        model_types=("qwen3",),
        activation=Activation.SILU,
        tensors={**LLAMA_TENSORS, **QK_NORMS},
        biases={"attention_bias": ATTENTION},
        windows=Windows.LATE,
        default_pre={"": "qwen2"},
        hf_defaults={"head_dim": 128, "max_position_embeddings": 32768},
    ),
    GEMMA3,
    Architecture(
        name="falcon",
        model_types=("falcon",),
        activation=Activation.GELU,
        tensors=_FALCON_TENSORS,
        norm=NormKind.LAYER,
        parallel=True,
        biases={"bias": (*QKV, "attn_output", "ffn_up", "ffn_down")},
        optional=frozenset({"output", "attn_norm_2"}),
        fused_qkv=True,
        hf_qkv_by_head=True,
        default_pre={"": "falcon"},
        hf_keys={
            "intermediate_size": "ffn_hidden_size",
            "num_key_value_heads": "num_kv_heads",
            "norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation",
        },
        hf_defaults={"norm_eps": 1e-5, "tie_word_embeddings": True},
        hf_required={"alibi": False, "parallel_attn": True},
        hf_adapt=_adapt_falcon,
    ),
    Architecture(
        name="opt",
        model_types=("opt",),
        activation=Activation.RELU,
        tensors=_OPT_TENSORS,
        norm=NormKind.LAYER,
        biases={"enable_bias": (*ATTENTION, "ffn_up", "ffn_down")},
        position_offset=2,
        default_pre={"": "gpt-2"},
        hf_keys={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
        hf_defaults={"enable_bias": True, "norm_eps": 1e-5, "tie_word_embeddings": True},
        hf_required={
            "do_layer_norm_before": True,
            "rms_norm_eps": None,
            "_remove_final_layer_norm": False,
            "layer_norm_elementwise_affine": True,
        },
    ),
    Architecture(
        name="nemotron",
        model_types=("nemotron",),
        activation=Activation.RELU2,
        tensors={name: module for name, module in LLAMA_TENSORS.items() if name != "ffn_gate"},
        norm=NormKind.LAYER,
        biases={"attention_bias": ATTENTION, "mlp_bias": ("ffn_up", "ffn_down")},
        norm_weight_plus_one=True,
        hf_keys={"norm_eps": "norm_eps"},
        hf_defaults={"norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.5},
    ),
)
