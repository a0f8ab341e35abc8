"""The rows of Gemma 2 and Gemma 4, which differ from Gemma 3 (`dense`) in more than sizes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotset.architectures.dense import GEMMA3, LLAMA_TENSORS, QK_NORMS
from hotset.architectures.row import SOFT_CAPS, Architecture, Mixture, Windows
from hotset.core.config import Activation

_LAYER = "model.layers.{}"
_GEMMA2_TENSORS = {
    **LLAMA_TENSORS,
    "post_attention_norm": f"{_LAYER}.post_attention_layernorm",
    "ffn_norm": f"{_LAYER}.pre_feedforward_layernorm",
    "post_ffw_norm": f"{_LAYER}.post_feedforward_layernorm",
}
_GEMMA4_TENSORS = {
    **_GEMMA2_TENSORS,
    **QK_NORMS,
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": f"{_LAYER}.per_layer_input_gate",
    "proj": f"{_LAYER}.per_layer_projection",
    "post_norm": f"{_LAYER}.post_per_layer_input_norm",
    "layer_output_scale": f"{_LAYER}.layer_scalar",
}
_BESIDE = {
    "ffn_gate_inp": f"{_LAYER}.router.proj",
    "ffn_gate_inp_scale": f"{_LAYER}.router.scale",
    "ffn_down_exps_scale": f"{_LAYER}.router.per_expert_scale",
    "ffn_gate_exps": f"{_LAYER}.experts.*.gate_proj",
    "ffn_up_exps": f"{_LAYER}.experts.*.up_proj",
    "ffn_gate_up_exps": f"{_LAYER}.experts.gate_up_proj",
    "ffn_down_exps": f"{_LAYER}.experts.down_proj|{_LAYER}.experts.*.down_proj",
    "post_ffw_norm_1": f"{_LAYER}.post_feedforward_layernorm_1",
    "post_ffw_norm_2": f"{_LAYER}.post_feedforward_layernorm_2",
    "pre_ffw_norm_2": f"{_LAYER}.pre_feedforward_layernorm_2",
}


def _of_text(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leaves out what is said of images alone, whose parts see each other both ways.

    The last layer attends to everything, whatever the file says of it, as in transformers.
    """
    key, kinds, layers = "use_bidirectional_attention", raw.get("layer_types"), raw.get("num_hidden_layers")
    own = {name: value for name, value in raw.items() if (name, value) != (key, "vision")}
    if kinds is None and isinstance(layers, int) and 0 < layers < 1 << 16:
        kinds = [f"{'sliding' if (layer + 1) % 6 else 'full'}_attention" for layer in range(layers)]
    if isinstance(kinds, list) and kinds and kinds[-1] == "sliding_attention":
        kinds = [*kinds[:-1], "full_attention"]
    return own if kinds is None else {**own, "layer_types": kinds}


_GEMMA4 = Architecture(
    name="gemma4",
    model_types=("gemma4_text", "gemma4_unified_text"),
    activation=Activation.GELU_TANH,
    tensors=_GEMMA4_TENSORS,
    optional=frozenset({"output", "layer_output_scale"}),
    embedding_scaled=True,
    soft_caps=SOFT_CAPS,
    attention_scale=1.0,
    value_norm=True,
    by_layer=True,
    windows=Windows.PATTERN,
    local_rope_theta=1e4,
    gguf_names={"ffn_gate_inp.scale": "ffn_gate_inp_scale", "ffn_down_exps.scale": "ffn_down_exps_scale"}
    | {"ffn_gate_inp.per_expert_scale": "ffn_down_exps_scale"},
    gguf_tokenizer={"llama": "gemma4"},
    gguf_defaults={"final_logit_softcapping": 30.0, "rope.freq_base": 1e6}
    | {"attention.layer_norm_rms_epsilon": 1e-6},
    hf_keys={"hidden_act": "hidden_activation", "num_experts_per_tok": "top_k_experts"},
    hf_defaults={
        "head_dim": 256,
        "hidden_size_per_layer_input": 256,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
            },
            "sliding_attention": {"rope_theta": 1e4},
        },
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "vocab_size": 262144,
    },
    hf_required={
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "hidden_act": "gelu_pytorch_tanh",
    },
    hf_adapt=_of_text,
)

GEMMAS: tuple[Architecture, ...] = (
    replace(
        GEMMA3,
        name="gemma2",
        model_types=("gemma2",),
        tensors=_GEMMA2_TENSORS,
        soft_caps=SOFT_CAPS,
        window_period=2,
        local_rope_theta=None,
        gguf_hidden_scaled_depth=46,
        gguf_also={},
        gguf_defaults={
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        gguf_depth_defaults={},
        hf_defaults={
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
            "vocab_size": 256000,
        },
    ),
    _GEMMA4,
    replace(_GEMMA4, tensors={**_GEMMA4_TENSORS, **_BESIDE}, experts=Mixture(beside=True)),
)
