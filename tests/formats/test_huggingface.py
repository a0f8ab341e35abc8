"""Hugging Face directories: every tensor of every architecture, shards, and what is refused.

That the numbers make the same logits as in transformers is in tests/model.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import falcon_40b, gemma3, llama, mistral, opt, qwen3, save
from safetensors.numpy import load_file, save_file

from hotset.core.config import Activation
from hotset.core.errors import CheckpointError
from hotset.formats import TensorType, open_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Directory of a tiny model by name, saved once, copied for each use."""
    builders = {
        "llama": llama,
        "mistral": mistral,
        "qwen3": qwen3,
        "gemma3": gemma3,
        "falcon": falcon_40b,
        "opt": opt,
    }
    folder = tmp_path_factory.mktemp("models")

    def directory(name: str, target: Path) -> Path:
        if not (folder / name).exists():
            save(builders[name](), folder / name)
        return Path(shutil.copytree(folder / name, target / name))

    return directory


def edit_config(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    config = {
        key: value for key, value in (json.loads(path.read_text()) | changes).items() if value != "ABSENT"
    }
    path.write_text(json.dumps(config))
    return directory


def test_bfloat16_and_float16_stay_as_they_are(tmp_path: Path) -> None:
    for dtype, type in (("bfloat16", TensorType.BF16), ("float16", TensorType.F16)):
        save(llama(), tmp_path / "f32")
        expected = load_file(tmp_path / "f32" / "model.safetensors")
        save(llama(), tmp_path / dtype, dtype=dtype)
        tensors = open_checkpoint(tmp_path / dtype).tensors
        assert {tensor.type for tensor in tensors.values()} == {type}
        embedding = tensors["token_embd.weight"].to_float32()
        np.testing.assert_allclose(embedding, expected["model.embed_tokens.weight"], rtol=1e-2)


def test_fused_rows_are_gathered_at_their_own_type(saved: Any, tmp_path: Path) -> None:
    directory = saved("falcon", tmp_path)
    fused = load_file(directory / "model.safetensors")[
        "transformer.h.1.self_attention.query_key_value.weight"
    ]
    checkpoint = open_checkpoint(directory)
    c = checkpoint.config
    groups = fused.reshape(c.n_kv_heads, -1, c.head_dim, c.hidden_size)
    for part, rows in {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}.items():
        tensor = checkpoint.tensors[f"blk.1.attn_{part}.weight"]
        np.testing.assert_array_equal(tensor.to_float32(), rows.reshape(-1, c.hidden_size))


def test_shards_equal_the_whole(saved: Any, tmp_path: Path) -> None:
    directory = saved("qwen3", tmp_path)
    whole = {name: t.data.tobytes() for name, t in open_checkpoint(directory).tensors.items()}
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        shard = f"model-{number + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[number::3]}, directory / shard)
        weight_map |= dict.fromkeys(names[number::3], shard)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert {name: t.data.tobytes() for name, t in open_checkpoint(directory).tensors.items()} == whole

    def refused(message: str, weight_map: Any) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(directory)

    refused(
        "lm_head.weight' is missing, which model.safetensors.index.json names",
        weight_map | {"lm_head.weight": shard},
    )
    refused("weight_map: expected tensor names", weight_map | {names[0]: "../model.safetensors"})
    refused("weight_map: expected tensor names", None)
    refused("cannot be read: No such file", weight_map | {names[0]: "gone.safetensors"})
    save_file(tensors, directory / shard)
    refused("is in another shard too", weight_map)


def test_unaligned_header_and_stray_buffers(saved: Any, tmp_path: Path) -> None:
    directory = saved("llama", tmp_path)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    whole = {name: t.data.tobytes() for name, t in open_checkpoint(directory).tensors.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(5, np.float64)
    save_file(tensors, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes((length + 3).to_bytes(8, "little") + raw[8 : 8 + length] + b"   " + raw[8 + length :])
    found = open_checkpoint(directory).tensors
    assert {name: t.data.tobytes() for name, t in found.items()} == whole
    assert all(t.data.ctypes.data % 4 == 0 for t in found.values())


def test_null_and_absent_keys_differ(saved: Any, tmp_path: Path) -> None:
    directory = saved("mistral", tmp_path)
    assert open_checkpoint(directory).config.layers[0].window == 7
    assert open_checkpoint(edit_config(directory, sliding_window=None)).config.layers[0].window is None
    assert open_checkpoint(edit_config(directory, sliding_window="ABSENT")).config.layers[0].window == 4096


def test_drelu_is_named_in_several_ways(saved: Any, tmp_path: Path) -> None:
    directory = saved("llama", tmp_path)
    assert open_checkpoint(directory).config.activation is Activation.SILU
    for changes in ({"hidden_act": "drelu"}, {"model_type": "bamboo", "hidden_act": "relu"}):
        assert open_checkpoint(edit_config(directory, **changes)).config.activation is Activation.DRELU


REFUSED = [
    ("llama", {"model_type": "mamba"}, r"model_type: expected one of llama, mistral, .*; found 'mamba'"),
    ("llama", {"model_type": "ABSENT"}, r"model_type: expected one of .*; found None"),
    ("llama", {"hidden_size": "ABSENT"}, r"config.json: hidden_size is missing"),
    ("llama", {"hidden_size": 44}, r"token_embd.weight: expected shape \[101, 44\], found \[101, 45\]"),
    ("llama", {"vocab_size": -1}, r"vocab_size: expected an integer from 1 to 2147483647, found -1"),
    ("llama", {"num_hidden_layers": 10**9}, r"num_hidden_layers: expected at most \d+, .* found 1000000000"),
    ("llama", {"num_hidden_layers": 4}, r"blk.3.attn_norm.weight is missing"),
    ("llama", {"num_hidden_layers": 2}, r"'model.layers.2.input_layernorm.weight' is unexpected .* 2 layers"),
    ("llama", {"num_key_value_heads": 2}, r"num_key_value_heads: expected a divisor of the 9 heads, found 2"),
    ("llama", {"head_dim": "ABSENT", "num_attention_heads": 7}, r"num_attention_heads: expected a divisor"),
    ("llama", {"head_dim": 12}, r"blk.0.attn_q.weight: expected shape \[108, 45\], found \[90, 45\]"),
    ("llama", {"hidden_act": "fatrelu"}, r"hidden_act: expected one of relu, .*, found 'fatrelu'"),
    ("llama", {"hidden_act": "relu", "hidden_act_param": 0.01}, r"hidden_act_param: expected 0, found 0.01"),
    (
        "llama",
        {"attention_bias": True},
        r"attention_bias: expected false, as the tensors have it, found True",
    ),
    (
        "llama",
        {"quantization_config": {"bits": 4}},
        r"quantization_config: expected none, as .* take .* a GGUF file, found \{'bits': 4\}",
    ),
    ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, r"rope_parameters: rope_type: expected default"),
    ("llama", {"rope_parameters": 3}, r"rope_parameters: expected a table, found 3"),
    ("qwen3", {"tie_word_embeddings": False}, r"tie_word_embeddings: expected true, as there is no lm_head"),
    ("qwen3", {"layer_types": ["chunked_attention"] * 3}, r"layer_types: expected 3 of full_attention"),
    ("gemma3", {"attn_logit_softcapping": 30.0}, r"attn_logit_softcapping: expected None, found 30.0"),
    ("qwen3", {"final_logit_softcapping": 30.0}, r"final_logit_softcapping: expected None, found 30.0"),
    ("gemma3", {"use_bidirectional_attention": True}, r"use_bidirectional_attention: expected False"),
    ("falcon", {"alibi": True}, r"alibi: expected False, found True"),
    ("falcon", {"new_decoder_architecture": False, "parallel_attn": False}, r"parallel_attn: expected True"),
    ("opt", {"do_layer_norm_before": False}, r"do_layer_norm_before: expected True, found False"),
    (
        "opt",
        {"max_position_embeddings": 64},
        r"position_embd.weight: expected shape \[66, 42\], found \[130, 42\]",
    ),
    ("opt", {"activation_function": "drelu"}, r"activation_function: expected one of"),
]


@pytest.mark.parametrize(("model", "changes", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_run_is_refused(
    saved: Any, tmp_path: Path, model: str, changes: dict[str, Any], message: str
) -> None:
    directory = edit_config(saved(model, tmp_path), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(directory)
    assert str(directory) in str(caught.value)


def test_missing_and_unexpected_tensors(saved: Any, tmp_path: Path) -> None:
    directory = saved("falcon", tmp_path)
    path = directory / "model.safetensors"
    whole = load_file(path)

    def refused(message: str, tensors: dict[str, Any]) -> None:
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(directory)

    norm = "transformer.h.1.ln_attn.weight"
    refused(r"blk.1.attn_norm_2.weight is missing", {n: t for n, t in whole.items() if n != norm})
    refused(
        r"blk.1.attn_norm_2.bias is missing",
        {n: t for n, t in whole.items() if n != norm.replace("weight", "bias")},
    )
    refused(r"'score.weight' is unexpected", whole | {"score.weight": np.ones(3, np.float32)})
    refused(r"lm_head.weight' has type 'I64'", whole | {"lm_head.weight": np.ones((101, 60), np.int64)})
    fused = "transformer.h.0.self_attention.query_key_value.weight"
    refused(
        r"attn_qkv.weight: expected shape \[120, 60\], found \[119, 60\]",
        whole | {fused: whole[fused][1:].copy()},
    )


def test_directories_that_hold_no_model(saved: Any, tmp_path: Path) -> None:
    def refused(message: str, directory: Path) -> None:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(directory)

    (tmp_path / "empty").mkdir()
    refused(r"empty: expected a model's directory with config.json, found none$", tmp_path / "empty")
    (tmp_path / "empty" / "a.gguf").touch()
    refused(r"found none; name the file to open a.gguf", tmp_path / "empty")
    directory = saved("llama", tmp_path)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused(r"expected model.safetensors or model.safetensors.index.json", directory)
    (directory / "config.json").write_text("{")
    refused(r"config.json: not valid JSON", directory)
    (directory / "config.json").write_text("[" * 100000)
    refused(r"config.json: not valid JSON", directory)
    (directory / "config.json").write_text('{"a": 1, "a": 2}')
    refused(r"the key a is there twice", directory)
    (directory / "config.json").write_bytes(b"\xff\xfe")
    refused(r"config.json: not valid JSON", directory)
    (directory / "config.json").write_text("[]")
    refused(r"expected a JSON object, found \[\]", directory)
