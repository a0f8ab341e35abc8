"""Laguna as GGUF, against the `transformers` model and llama.cpp: numbers of heads, and gates, by layer."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close, run_peer
from helpers.tiny_families import laguna
from helpers.tiny_models import Model, save
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer


def logits(path: Path) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(path), CpuBackend(2))
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


def exported(model: Model, directory: Path, **changed: NDArray[Any]) -> Path:
    """The model as llama.cpp's converter writes it, but for tensors that are `changed`."""
    save(model, directory)
    config, path = model.config, directory / "model.gguf"
    full, sliding = (config.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding"))
    writer = gguf.GGUFWriter(path, "laguna")
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads_per_layer)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(config.moe_routed_scaling_factor)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(1)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(full["factor"])
    writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    writer.add_float32("laguna.rope.freq_base_swa", sliding["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * full["partial_rotary_factor"]))
    writer.add_uint32("laguna.rope.dimension_count_swa", config.head_dim)
    for name, tensor in open_checkpoint(directory).tensors.items():  # which have GGUF's names
        writer.add_tensor(name, changed.get(name, tensor.to_float32()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf(tmp_path: Path) -> None:
    model = laguna()
    path = exported(model, tmp_path)
    assert [open_checkpoint(path).config.heads(i).n_heads for i in range(5)] == [4, 6, 6, 6, 4]
    assert_close(logits(path), run_peer(model))


def test_a_key_of_another_family(tmp_path: Path) -> None:
    """Of Gemma 4's, which has embeddings for each layer: nothing reads it, in either kind of file."""
    path = exported(laguna(), tmp_path)
    overrides = {"laguna.embedding_length_per_layer_input": 9}
    assert open_checkpoint(path, overrides).config.layer_input == 0
    overrides = {"hidden_size_per_layer_input": 9}
    assert open_checkpoint(tmp_path, overrides).config.layer_input == 0


@pytest.mark.slow
def test_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from helpers.llama_cpp import llama_cpp_logits

    path = exported(laguna(), tmp_path)
    assert_close(logits(path), llama_cpp_logits(path, TOKENS), 1e-3)


def test_gates_of_single_numbers_are_refused(tmp_path: Path) -> None:
    wide = np.zeros((4 * 10, 45), np.float32)
    path = exported(laguna(), tmp_path, **{"blk.0.attn_gate.weight": wide})
    with pytest.raises(CheckpointError, match=r"expected shape \[4, 45\], found \[40, 45\]"):
        open_checkpoint(path)
