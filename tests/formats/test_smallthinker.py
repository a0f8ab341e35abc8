"""SmallThinker as the hub has it (`transformers` has no class of it), against the same weights in GGUF."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.parity import assert_close
from helpers.random_gguf import CONTEXT, F32, HEADS, TOKENS, VOCABULARY, random_model, write_plain
from safetensors.numpy import save_file

from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

LAYERS, EXPERTS = 2, 6
MODEL = random_model("smallthinker")
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    "attn_output": "self_attn.o_proj",
    "ffn_gate_inp": "block_sparse_moe.primary_router",
}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONFIG: dict[str, Any] = {
    "architectures": ["SmallThinkerForCausalLM"],
    "model_type": "smallthinker",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "moe_num_primary_experts": EXPERTS,
    "moe_num_active_primary_experts": 3,
    "moe_ffn_hidden_size": 24,
    "moe_layer_layout": [1] * LAYERS,
    "moe_enable_early_router": True,
    "moe_enable_secondary_experts": False,
    "sliding_window_size": 5,
    "tie_word_embeddings": False,
}


def directory(path: Path, **changes: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    tensors = {f"{hub}.weight": MODEL.weights[f"{name}.weight"] for name, hub in ENDS.items()}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for name, hub in NAMES.items():
            tensors[f"{layer}.{hub}.weight"] = MODEL.weights[f"blk.{i}.{name}.weight"]
        for part in ("gate", "up", "down"):
            stack = MODEL.weights[f"blk.{i}.ffn_{part}_exps.weight"]
            for expert in range(EXPERTS):
                name = f"{layer}.block_sparse_moe.experts.{expert}.{part}.weight"
                tensors[name] = np.ascontiguousarray(stack[expert])
    save_file(tensors, path / "model.safetensors")
    return path


def logits(path: Path) -> F32:
    model = build_transformer(open_checkpoint(path), ReferenceBackend())
    return model.forward(Batch.of(model.sequence(len(TOKENS), "f32"), TOKENS, logits=None))


@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
def test_hub_and_gguf_give_the_same(windowed: bool, softmax: bool, tmp_path: Path) -> None:
    keys = {**MODEL.keys, "smallthinker.expert_gating_func": 1 if softmax else 2}
    layout = [0, 1] if windowed else [0, 0]
    if windowed:
        keys["smallthinker.attention.sliding_window"] = 5
    expected = logits(write_plain(tmp_path / "m.gguf", replace(MODEL, keys=keys), Q.F32))
    hub = directory(
        tmp_path / "hub",
        moe_primary_router_apply_softmax=softmax,
        sliding_window_layout=layout,
        rope_layout=layout if windowed else [1, 1],
    )
    assert_close(logits(hub), expected, 1e-6)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rope_layout": [1, 1], "sliding_window_layout": [0, 1]}, "rope_layout"),
        ({"rope_layout": [0, 1], "sliding_window_layout": [0, 0]}, "rope_layout"),
        ({"moe_layer_layout": [0, 1]}, "moe_layer_layout"),
        ({"moe_enable_secondary_experts": True}, "moe_enable_secondary_experts"),
        ({"moe_enable_early_router": False}, "moe_enable_early_router"),
        ({"sliding_window_layout": [0, 1, 1], "rope_layout": [0, 1, 1]}, "layer_types"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: expected"):
        open_checkpoint(directory(tmp_path / "hub", **changes))
