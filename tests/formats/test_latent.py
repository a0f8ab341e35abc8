"""Multi-head latent attention in GGUF files of both layouts, against the `transformers` model."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.gguf_export import export_gguf
from helpers.parity import LENGTH, TOKENS, assert_close, run_peer
from helpers.tiny_families import deepseek_v2, deepseek_v3, glm4_moe_lite
from helpers.tiny_models import Model, save
from numpy.typing import NDArray

from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.config import Gating
from hotset.core.errors import CheckpointError
from hotset.formats import TensorType, open_checkpoint
from hotset.model.build import build_transformer

MODELS = {
    "deepseek-v2": lambda: deepseek_v2(rms_norm_eps=1e-6, q_lora_rank=19),
    "deepseek-v3": lambda: deepseek_v3(rms_norm_eps=1e-6),
    "glm4-moe-lite": lambda: glm4_moe_lite(rms_norm_eps=1e-6),
}


def logits(path: Path) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(path), ReferenceBackend())
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


def exported(model: Model, directory: Path, kind: Q = Q.F32, *, split: bool = True) -> Path:
    save(model, directory)
    path = directory / "model.gguf"
    export_gguf(model, path, kind, split=split)
    return path


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("name", MODELS)
def test_gguf(name: str, split: bool, tmp_path: Path) -> None:
    model = MODELS[name]()
    path = exported(model, tmp_path, split=split)
    assert_close(logits(path), run_peer(model))
    experts = open_checkpoint(path).config.layers[1].experts
    assert experts and (experts.gating is Gating.SOFTMAX) == (name == "deepseek-v2")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from helpers.llama_cpp import llama_cpp_logits

    path = exported(MODELS[name](), tmp_path)
    assert_close(logits(path), llama_cpp_logits(path, TOKENS), 1e-3)


def test_rounded_keys_are_rounded_anew(tmp_path: Path) -> None:
    """Blocks of keys and values that lie together run along the other axis."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    sizes |= {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32}
    model = deepseek_v3(**sizes, q_lora_rank=32, moe_intermediate_size=32, rms_norm_eps=1e-6)
    path = exported(model, tmp_path, Q.Q4_0, split=False)
    tensors = open_checkpoint(path).tensors
    keys, values = (tensors[f"blk.1.attn_{part}_b.weight"] for part in "kv")
    assert (keys.type, values.type) == (TensorType.Q8_0, TensorType.Q4_0)
    whole = model.model.layers[1].self_attn.kv_b_proj.weight.detach().numpy().reshape(2, 64, 32)
    np.testing.assert_array_equal(values.to_float32(), whole[:, 32:])
    np.testing.assert_allclose(
        keys.to_float32(), whole[:, :32].swapaxes(1, 2), atol=np.abs(whole).max() / 254
    )
    assert np.isfinite(logits(path)).all()


def test_groups_by_their_best_expert_are_refused(tmp_path: Path) -> None:
    """DeepSeek-V2's own, which llama.cpp takes for V3's."""
    path = exported(deepseek_v2(n_group=2, topk_group=1), tmp_path)
    with pytest.raises(CheckpointError, match="expert_group_count: expected 1"):
        open_checkpoint(path)
    save(deepseek_v2(topk_method="group_limited_greedy", n_group=2, topk_group=1), tmp_path)
    with pytest.raises(CheckpointError, match="topk_method: expected 'greedy'"):
        open_checkpoint(tmp_path)
