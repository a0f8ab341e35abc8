"""What GGUF's keys and tensors mean, and what is refused of them.

That the numbers make the same logits as in transformers and in llama.cpp is in tests/model.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gguf_bytes import GGUFBytes, TensorLine, tiny_llama, tiny_model

from hotset.architectures.table import ARCHITECTURES
from hotset.core.config import Activation
from hotset.core.errors import CheckpointError
from hotset.formats import Checkpoint, open_checkpoint

BY_NAME = {architecture.name: architecture for architecture in reversed(ARCHITECTURES)}


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    def open_bytes(file: GGUFBytes) -> Checkpoint:
        path = tmp_path / "m.gguf"
        path.write_bytes(file.to_bytes())
        return open_checkpoint(path)

    return open_bytes


def test_activation_key_overrides_the_architecture(opened: Any) -> None:
    assert opened(tiny_llama()).config.activation is Activation.SILU
    assert opened(tiny_model(BY_NAME["bamboo"])).config.activation is Activation.DRELU
    for activation in Activation:
        assert opened(tiny_llama(hotset__activation=activation.value)).config.activation is activation


def test_learned_positions_with_and_without_an_offset(opened: Any) -> None:
    opt = BY_NAME["opt"]
    assert opened(tiny_model(opt)).config.position_offset == 2
    assert opened(tiny_model(opt, opt__context_length=34)).config.position_offset == 0
    with pytest.raises(CheckpointError, match=r"context_length: expected 34 as in position_embd.weight"):
        opened(tiny_model(opt, opt__context_length=30))


def test_gemma_windows_and_scales(opened: Any) -> None:
    gemma = BY_NAME["gemma3"]
    file = tiny_model(gemma, gemma3__attention__sliding_window=5, gemma3__attention__key_length=4)
    config = opened(file).config
    assert config.layers[0].window == 5
    assert config.embedding_scale == 8**0.5
    assert config.attention_scale == 0
    layer = [tensor for tensor in file.tensors if tensor.name.startswith("blk.0.")]
    for number in range(1, 62):
        for tensor in layer:
            name = tensor.name.replace("blk.0.", f"blk.{number}.")
            file.tensors.append(TensorLine(name, tensor.shape, tensor.data))
    file.keys["gemma3.block_count"] = 62  # type: ignore[call-overload]
    config = opened(file).config
    assert [layer.window for layer in config.layers[:7]] == [5, 5, 5, 5, 5, None, 5]
    assert config.attention_scale == (8 / 2) ** -0.5  # the 27B model's


def test_granite_without_positions_is_refused(opened: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"granite\.rope\.scaling\.finetuned: expected True, found False"
    ):
        opened(tiny_model(BY_NAME["granite"], granite__rope__scaling__finetuned=False))


def test_rope_factors_of_llama_3(opened: Any) -> None:
    file = tiny_llama()
    file.tensors.append(TensorLine("rope_freqs.weight", (2,), np.float32([1, 8]).tobytes()))
    checkpoint = opened(file)
    assert checkpoint.config.layers[0].rope.inverse_frequencies[1] == pytest.approx(0.01 / 8)
    assert "rope_freqs.weight" not in checkpoint.tensors
    file.tensors[-1] = TensorLine("rope_freqs.weight", (2,), np.float32([1, -8]).tobytes())
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight: expected positive numbers"):
        opened(file)
    file.tensors[-1] = TensorLine("rope_freqs.weight", (3,), np.float32([1, 2, 3]).tobytes())
    with pytest.raises(
        CheckpointError, match=r"dimension_count: expected 6 as in rope_freqs.weight, found 4"
    ):
        opened(file)


def test_fused_rows_follow_one_another(opened: Any) -> None:
    file = tiny_model(BY_NAME["falcon"])
    (fused,) = (tensor for tensor in file.tensors if tensor.name == "blk.0.attn_qkv.weight")
    rows = np.frombuffer(fused.data, np.float32).reshape(16, 8)
    tensors = opened(file).tensors
    for part, expected in {"q": rows[:8], "k": rows[8:12], "v": rows[12:]}.items():
        np.testing.assert_array_equal(tensors[f"blk.0.attn_{part}.weight"].to_float32(), expected)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"general__architecture": "mamba"},
        r"general.architecture: expected one of llama, bamboo, .* found 'mamba'",
    ),
    ({"general__architecture": None}, r"general.architecture is missing"),
    ({"general__type": "adapter"}, r"general.type: expected 'model'|expected model, found 'adapter'"),
    ({"llama__block_count": None}, r"llama.block_count is missing"),
    ({"llama__block_count": 2**32 - 1}, r"llama.block_count: expected an integer .* found 4294967295"),
    ({"llama__block_count": 10**8}, r"llama.block_count: expected at most 11, the file's number of tensors"),
    ({"llama__block_count": 2}, r"tensor blk.1.attn_norm.weight is missing"),
    ({"llama__embedding_length": 16}, r"tensor token_embd.weight: expected shape \[6, 16\], found \[6, 8\]"),
    (
        {"llama__attention__head_count": 3},
        r"llama.attention.head_count: expected a divisor of embedding_length 8",
    ),
    ({"llama__attention__head_count": [2, 1]}, r"llama.attention.head_count: expected an integer"),
    ({"llama__attention__value_length": 8}, r"value_length: expected 4 like the key's, found 8"),
    ({"llama__expert_count": 8}, r"llama.expert_used_count is missing"),
    ({"llama__final_logit_softcapping": 30.0}, r"final_logit_softcapping: expected 0, found 30.0"),
    ({"llama__attention__max_alibi_bias": 8.0}, r"attention.max_alibi_bias: expected 0, found 8.0"),
    ({"llama__attention__causal": False}, r"llama.attention.causal: expected True, found False"),
    ({"llama__rope__dimension_count": 3}, r"rope.dimension_count: expected an even number, found 3"),
    (
        {"llama__rope__dimension_count": 64},
        r"rope.dimension_count: expected an integer from 2 to 4, found 64",
    ),
    ({"llama__attention__layer_norm_rms_epsilon": None}, r"layer_norm_rms_epsilon is missing"),
    ({"hotset__activation": "mish"}, r"hotset.activation: expected one of relu, .*, found 'mish'"),
    ({"tokenizer__ggml__tokens": ["x"] * 7}, r"the vocabulary has 7 tokens, token_embd.weight only 6"),
    ({"tokenizer__ggml__tokens": "x"}, r"tokenizer.ggml.tokens: expected an array, found 'x'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_run_is_refused(opened: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tiny_llama(**changes))


def test_drelu_needs_a_gate(opened: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"hotset.activation: expected one of relu, relu2, .*found 'drelu'"
    ):
        opened(tiny_model(BY_NAME["nemotron"], hotset__activation="drelu"))


def test_missing_and_unexpected_tensors(opened: Any) -> None:
    file = tiny_llama()
    file.tensors = file.tensors[1:]
    with pytest.raises(CheckpointError, match=r"token_embd.weight is missing"):
        opened(file)
    file = tiny_llama()
    file.tensors.append(TensorLine("blk.0.ffn_gate_inp.weight", (8,), bytes(32)))
    with pytest.raises(
        CheckpointError, match=r"'blk.0.ffn_gate_inp.weight' is unexpected in a model of arch"
    ):
        opened(file)
    file = tiny_model(BY_NAME["qwen2"])
    file.tensors = [tensor for tensor in file.tensors if tensor.name != "blk.0.attn_k.bias"]
    with pytest.raises(CheckpointError, match=r"blk.0.attn_k.bias is missing"):
        opened(file)
