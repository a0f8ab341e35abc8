"""Mixtures of experts in files: what keys and tensors mean, and what is refused of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gguf_bytes import GGUFBytes, TensorLine, tiny_model
from helpers.tiny_mixtures import gpt_oss, mixtral, qwen2moe, qwen3moe
from helpers.tiny_models import save
from safetensors.numpy import load_file, save_file

from hotset.architectures.table import ARCHITECTURES
from hotset.core.config import Gating
from hotset.core.errors import CheckpointError
from hotset.formats import Checkpoint, open_checkpoint

MIXTURES = {row.name: row for row in ARCHITECTURES if row.experts}


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    def open_bytes(file: GGUFBytes) -> Checkpoint:
        path = tmp_path / "m.gguf"
        path.write_bytes(file.to_bytes())
        return open_checkpoint(path)

    return open_bytes


def without(file: GGUFBytes, *names: str) -> GGUFBytes:
    kept = [tensor for tensor in file.tensors if tensor.name not in names]
    assert len(kept) == len(file.tensors) - len(names)
    return replace(file, tensors=kept)


def added(file: GGUFBytes, name: str, shape: tuple[int, ...]) -> GGUFBytes:
    data = np.arange(np.prod(shape), dtype="<f4").tobytes()
    return replace(file, tensors=[*file.tensors, TensorLine(name, shape, data)])


@pytest.mark.parametrize("name", MIXTURES)
def test_sizes_come_from_keys_or_tensors(opened: Any, name: str) -> None:
    stated = {f"{name}.expert_feed_forward_length".replace(".", "__"): 5}
    for changes in ({}, stated):
        config = opened(tiny_model(MIXTURES[name], **changes)).config
        experts = config.layers[0].experts
        assert (experts.count, experts.used, experts.size) == (3, 2, 5)
        assert experts.shared_size == (7 if "ffn_up_shexp" in MIXTURES[name].tensors else 0)
        assert config.ffn_size == (12 if MIXTURES[name].by_layer else 0)
        assert config.mixture


def test_what_routes_experts(opened: Any) -> None:
    keys = {"weights_scale": 2.5, "weights_norm": False, "gating_func": 2, "group_count": 3}
    changes = {f"qwen3moe__expert_{key}": value for key, value in keys.items()}
    file = tiny_model(MIXTURES["qwen3moe"], **changes, qwen3moe__expert_group_used_count=2)
    experts = opened(file).config.layers[0].experts
    assert experts.gating is Gating.SIGMOID
    assert (experts.scale, experts.normalised) == (2.5, False)
    assert (experts.groups, experts.groups_used) == (3, 2)


def test_a_row_may_be_a_vector(opened: Any) -> None:
    """As in files that `llama-quantize` has written."""
    file, name = tiny_model(MIXTURES["qwen35moe"]), "blk.0.ffn_gate_inp_shexp.weight"
    row = opened(file).tensors[name]
    assert row.shape == (1, 8)
    vector = opened(added(without(file, name), name, (8,))).tensors[name]
    assert vector.shape == row.shape
    assert vector.to_float32().tolist() == [[*range(8)]]


def test_gate_and_up_in_one_tensor(opened: Any) -> None:
    file = without(tiny_model(MIXTURES["qwen3moe"]), "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")
    tensors = opened(added(file, "blk.0.ffn_gate_up_exps.weight", (3, 10, 8))).tensors
    whole = np.arange(240, dtype=np.float32).reshape(3, 10, 8)
    np.testing.assert_array_equal(tensors["blk.0.ffn_gate_exps.weight"].to_float32(), whole[:, :5])
    np.testing.assert_array_equal(tensors["blk.0.ffn_up_exps.weight"].to_float32(), whole[:, 5:])
    with pytest.raises(
        CheckpointError, match=r"gate_up_exps.weight: expected shape \[3, 8, 8\], found \[3, 9, 8\]"
    ):
        opened(added(file, "blk.0.ffn_gate_up_exps.weight", (3, 9, 8)))


def test_gpt_oss_of_ollama(opened: Any) -> None:
    """Another name, other tensors' names, no kind of RoPE's scaling, a pre-tokenizer that means gpt-4o."""
    file = tiny_model(MIXTURES["gpt-oss"])
    keys = {key.replace("gpt-oss.", "gptoss."): value for key, value in dict(file.keys).items()}
    keys |= {"general.architecture": "gptoss", "gptoss.rope.scaling.factor": 32.0}
    keys |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "default"}
    keys |= {"gptoss.attention.sliding_window": 4, "gptoss.rope.scaling.original_context_length": 16}
    renamed = [
        replace(t, name=t.name.replace("attn_output", "attn_out").replace("sinks.weight", "sinks"))
        for t in file.tensors
    ]
    checkpoint = opened(GGUFBytes(keys, renamed))
    assert checkpoint.metadata["tokenizer.ggml.pre"] == "gpt-4o"
    assert checkpoint.config.architecture == "gpt-oss"
    assert checkpoint.config.layers[0].window == 4
    assert checkpoint.config.layers[0].rope.magnitude == pytest.approx(0.1 * np.log(32) + 1)
    assert {"blk.0.attn_sinks.weight", "blk.0.attn_output.bias"} <= set(checkpoint.tensors)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3moe", {"expert_count": 0}, r"qwen3moe.expert_count: expected an integer from 1 .* found 0"),
    ("qwen3moe", {"expert_count": None}, r"qwen3moe.expert_count is missing"),
    ("qwen3moe", {"expert_count": 2**31 - 1}, r"expert_count: expected an integer from 1 to 65536"),
    ("qwen3moe", {"expert_count": 4}, r"ffn_gate_inp.weight: expected shape \[4, 8\], found \[3, 8\]"),
    (
        "qwen3moe",
        {"expert_used_count": 0},
        r"expert_used_count: expected an integer from 1 to 3, found 0",
    ),
    (
        "qwen3moe",
        {"expert_used_count": 4},
        r"expert_used_count: expected an integer from 1 to 3, found 4",
    ),
    ("qwen3moe", {"expert_used_count": None}, r"expert_used_count is missing"),
    (
        "qwen3moe",
        {"expert_feed_forward_length": 6},
        r"ffn_gate_exps.weight: expected shape \[3, 6, 8\], found \[3, 5, 8\]",
    ),
    ("qwen3moe", {"expert_gating_func": 4}, r"expert_gating_func: expected an integer .* found 4"),
    ("qwen3moe", {"expert_gating_func": []}, r"expert_gating_func: expected an integer from 0 to 3"),
    ("qwen3moe", {"expert_group_count": 2}, r"expert_group_count: expected groups of 3 experts with room"),
    ("qwen3moe", {"expert_group_count": 3}, r"expert_group_count: expected groups of 3 experts with room"),
    ("qwen3moe", {"leading_dense_block_count": 1}, r"leading_dense_block_count: expected 0, found 1"),
    ("qwen3moe", {"interleave_moe_layer_step": 2}, r"interleave_moe_layer_step: expected an integer"),
    (
        "qwen2moe",
        {"expert_shared_feed_forward_length": 8},
        r"ffn_gate_shexp.weight: expected shape \[8, 8\], found \[7, 8\]",
    ),
    ("olmoe", {"attention.clamp_kqv": 8.0}, r"attention.clamp_kqv: expected 0, found 8.0"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_keys_that_cannot_be_run_are_refused(
    opened: Any, name: str, changes: dict[str, Any], message: str
) -> None:
    named = {f"{name}.{key}".replace(".", "__"): value for key, value in changes.items()}
    with pytest.raises(CheckpointError, match=message):
        opened(tiny_model(MIXTURES[name], **named))


def test_tensors_that_cannot_be_run_are_refused(opened: Any) -> None:
    def refused(message: str, file: GGUFBytes) -> None:
        with pytest.raises(CheckpointError, match=message):
            opened(file)

    whole = tiny_model(MIXTURES["llama"])
    for part in ("ffn_gate_inp", "ffn_down_exps"):
        refused(rf"tensor blk.0.{part}.weight is missing", without(whole, f"blk.0.{part}.weight"))
    old = without(whole, *(f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down")))
    refused(
        r"blk.0.ffn_gate.0.weight is of a single expert, .* get the model as a newer file",
        added(old, "blk.0.ffn_gate.0.weight", (5, 8)),
    )
    refused(r"expert_feed_forward_length is missing", old)
    turned = without(whole, "blk.0.ffn_down_exps.weight")
    refused(
        r"ffn_down_exps.weight: expected shape \[3, 8, 5\], found \[3, 5, 8\]",
        added(turned, "blk.0.ffn_down_exps.weight", (3, 5, 8)),
    )
    refused(r"'blk.0.ffn_up.weight' is unexpected", added(whole, "blk.0.ffn_up.weight", (12, 8)))
    biased = without(tiny_model(MIXTURES["gpt-oss"]), "blk.0.ffn_up_exps.bias")
    refused(r"blk.0.ffn_up_exps.bias is missing", biased)
    refused(
        r"blk.0.ffn_up_exps.bias: expected shape \[3, 5\], found \[3, 4\]",
        added(biased, "blk.0.ffn_up_exps.bias", (3, 4)),
    )


def test_layers_of_another_type_each(opened: Any, tmp_path: Path) -> None:
    """Types may differ between gate, up and down of one layer."""
    file = tiny_model(MIXTURES["qwen3moe"])
    for i, tensor in enumerate(file.tensors):
        if "ffn_up_exps" in tensor.name:
            half = np.frombuffer(tensor.data, "<f4").astype("<f2")
            file.tensors[i] = TensorLine(tensor.name, tensor.shape, half.tobytes(), type=1)
    tensors = opened(file).tensors
    assert tensors["blk.0.ffn_up_exps.weight"].type.name == "F16"
    assert tensors["blk.0.ffn_gate_exps.weight"].type.name == "F32"


# Hugging Face directories.


def edited(directory: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, directory / "model.safetensors")
    return directory


def test_single_and_stacked_experts_are_the_same(tmp_path: Path) -> None:
    save(qwen3moe(), tmp_path)
    single = {name: t.data.tobytes() for name, t in open_checkpoint(tmp_path).tensors.items()}
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        experts = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            np.stack([tensors.pop(f"{experts}.{e}.{part}_proj.weight") for e in range(6)])
            for part in ("gate", "up", "down")
        )
        tensors[f"{experts}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        tensors[f"{experts}.down_proj"] = down
    edited(tmp_path, tensors)
    assert {name: t.data.tobytes() for name, t in open_checkpoint(tmp_path).tensors.items()} == single


HF_REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (qwen3moe, {"decoder_sparse_step": 2}, r"decoder_sparse_step: expected 1, found 2"),
    (qwen3moe, {"mlp_only_layers": [0]}, r"mlp_only_layers: expected \[\], found \[0\]"),
    (qwen3moe, {"use_sliding_window": True}, r"use_sliding_window: expected False, found True"),
    (
        qwen3moe,
        {"num_experts_per_tok": 7},
        r"num_experts_per_tok: expected an integer from 1 to 6, found 7",
    ),
    (qwen2moe, {"shared_expert_intermediate_size": 36}, r"ffn_gate_shexp.weight: expected shape \[36, 48\]"),
    (mixtral, {"num_local_experts": 9}, r"ffn_gate_inp.weight: expected shape \[9, 45\]"),
    (mixtral, {"num_local_experts": 11}, r"block_sparse_moe.experts.10.w1.weight is missing"),
    (gpt_oss, {"swiglu_limit": 8.0}, r"swiglu_limit: expected 7.0, found 8.0"),
    (
        gpt_oss,
        {"intermediate_size": 24},
        r"ffn_gate_up_exps.\w+: expected shape \[6.* 48\], found \[6.* 46\]",
    ),
]


@pytest.mark.parametrize(
    ("model", "changes", "message"), HF_REFUSED, ids=lambda x: getattr(x, "__name__", str(x)[:40])
)
def test_directories_that_cannot_be_run_are_refused(
    tmp_path: Path, model: Any, changes: dict[str, Any], message: str
) -> None:
    save(model(), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(edited(tmp_path, **changes))


def test_experts_must_be_alike(tmp_path: Path) -> None:
    save(mixtral(), tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.4.w3.weight"

    def refused(message: str, tensors: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(edited(tmp_path, tensors))

    refused(r"experts.4.w3.weight is missing", {n: t for n, t in whole.items() if n != name})
    refused(r"experts.4.w3.weight: expected shape \[56, 45\]", whole | {name: whole[name][1:].copy()})
    refused(
        r"experts.4.w3.weight: expected F32 like expert 0's, found F16",
        whole | {name: whole[name].astype(np.float16)},
    )


def test_a_stack_is_made_piece_by_piece(tmp_path: Path) -> None:
    save(gpt_oss(), tmp_path)
    tensors = open_checkpoint(tmp_path).tensors
    whole = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"]
    up = tensors["blk.0.ffn_up_exps.weight"]
    assert up.nbytes == up.data.nbytes == whole.nbytes // 2
    np.testing.assert_array_equal(up.part(2).to_float32(), whole[2, :, 1::2].T)
    np.testing.assert_array_equal(up.to_float32(), whole[:, :, 1::2].swapaxes(1, 2))
    save(mixtral(), tmp_path)
    one = open_checkpoint(tmp_path).tensors["blk.1.ffn_down_exps.weight"].part(3)
    assert one.data.base is not None, "a view of the file"
