"""Cohere's mixtures as GGUF, against the `transformers` model and llama.cpp."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close, run_peer
from helpers.tiny_families import cohere2_moe
from helpers.tiny_models import Model, save
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import NormKind
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

NORMS = {"layer": {"layer_norm_eps": 0.02}, "rms": {"rms_norm_eps": 0.02}}


def logits(path: Path) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(path), CpuBackend(2))
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


def exported(model: Model, directory: Path) -> Path:
    """The model as llama.cpp's converter writes it."""
    save(model, directory)
    config, path = model.config, directory / "model.gguf"
    writer = gguf.GGUFWriter(path, "cohere2moe")
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.prefix_dense_intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.rms_norm_eps is None:
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_logit_scale(config.logit_scale)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_expert_shared_count(config.num_shared_experts)
    writer.add_expert_shared_feed_forward_length(config.num_shared_experts * config.intermediate_size)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(1)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    for name, tensor in open_checkpoint(directory).tensors.items():  # which have GGUF's names
        if "gate_inp_shexp" not in name:
            writer.add_tensor(name, tensor.to_float32())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("norm", NORMS)
def test_gguf(norm: str, tmp_path: Path) -> None:
    model = cohere2_moe(**NORMS[norm])
    path = exported(model, tmp_path)
    config = open_checkpoint(path).config
    assert (config.norm is NormKind.RMS) == (norm == "rms")
    assert [layer.rope is not None for layer in config.layers] == [True, True, True, False, True]
    assert_close(logits(path), run_peer(model))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_llama_cpp(norm: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from helpers.llama_cpp import llama_cpp_logits

    path = exported(cohere2_moe(**NORMS[norm]), tmp_path)
    assert_close(logits(path), llama_cpp_logits(path, TOKENS), 1e-3)
