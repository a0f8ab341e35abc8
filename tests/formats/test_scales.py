"""NVFP4 files: each matrix with a factor beside it, one for each expert."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.llama_cpp import llama_cpp_logits
from helpers.parity import assert_close, usual_error
from helpers.profiles import random_profile
from helpers.random_gguf import F32, TOKENS, VOCABULARY, RandomModel, random_model, write_plain
from helpers.random_tensors import random_tensor

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.convert.by_neuron import convert
from hotset.convert.quantize import quantise_model
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.formats.gguf_writer import same_tensor, write_gguf
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array
from hotset.model.build import build_transformer

REFERENCE, CPU = ReferenceBackend(), CpuBackend(threads=2)
FUSED = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
}
Tensors = dict[str, Tensor]


def model_of(name: str, activation: str | None = None) -> RandomModel:
    model = random_model(name, hidden=64, ffn=128, expert=64, activation=activation)
    keys = {**model.keys, "tokenizer.ggml.model": "no_vocab", f"{name}.vocab_size": VOCABULARY}
    return replace(model, keys=keys)


def in_nvfp4(model: RandomModel) -> Tensors:
    """The layers' matrices as random NVFP4 with scales, but for those whose rows are no whole blocks."""
    rng = np.random.default_rng(2)
    tensors = {}
    for name, values in model.weights.items():
        tensors[name] = tensor_from_array(name, values)
        if not name.startswith("blk.") or values.ndim < 2 or "inp" in name or values.shape[-1] % 64:
            continue
        blocks = random_tensor(TensorType.NVFP4, int(np.prod(values.shape[:-1])), values.shape[-1], len(name))
        tensors[name] = replace(blocks, name=name, shape=values.shape)
        scale = (rng.uniform(0.5, 2, values.shape[0] if values.ndim == 3 else 1) * 0.05).astype(np.float32)
        for suffix in ("scale", "input_scale"):
            other = name.replace("weight", suffix)
            tensors[other] = tensor_from_array(other, scale if suffix == "scale" else scale * 7)
    return tensors


def write(path: Path, model: RandomModel, tensors: Tensors) -> Path:
    keys = {"general.architecture": model.architecture, **model.keys}
    write_gguf(path, keys, [same_tensor(tensor, name) for name, tensor in tensors.items()])
    return path


def plain(path: Path, model: RandomModel, tensors: Tensors) -> Path:
    """The same numbers in F32, as `gguf` dequantises them."""
    weights = {}
    for name in model.weights:
        tensor = tensors[name]
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        values = gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.type))
        values = values.view(np.float32).reshape(tensor.shape)
        if scale := tensors.get(name.removesuffix("weight") + "scale"):
            values = values * scale.to_float32().reshape(-1, *[1] * (values.ndim - 1))
        weights[name] = values
    return write_plain(path, replace(model, weights=weights), gguf.GGMLQuantizationType.F32)


def logits(path: Path, backend: Backend = REFERENCE) -> F32:
    model = build_transformer(open_checkpoint(path), backend)
    sequence = model.sequence(len(TOKENS), "f32")
    parts = [model.forward(Batch.of(sequence, TOKENS[:7], lossless=True, logits=None))]
    return np.concatenate([*parts, *(model.forward(Batch.of(sequence, t)) for t in TOKENS[7:, None])])


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "qwen2moe"])
def test_products_have_the_scales(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    tensors = in_nvfp4(model)
    path = write(tmp_path / "m.gguf", model, tensors)
    opened = open_checkpoint(path)
    assert opened.tensors["blk.0.attn_q.weight"].type is TensorType.NVFP4
    expected = logits(plain(tmp_path / "plain.gguf", model, tensors))
    assert_close(logits(path), expected)
    assert usual_error(logits(path, CPU), expected) < 0.03


def test_llama_cpp_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = model_of("qwen3moe")
    path = write(tmp_path / "m.gguf", model, in_nvfp4(model))
    assert usual_error(logits(path, CPU), llama_cpp_logits(path, TOKENS)) < 0.03


def test_fused_matrices_share_a_scale(tmp_path: Path) -> None:
    model = model_of("qwen3moe")
    tensors = in_nvfp4(model)
    for parts in FUSED.values():
        for layer in range(2):
            one, *others = (f"blk.{layer}.{part}" for part in parts)
            for other in others:  # first the same scale in both forms
                tensors[f"{other}.scale"] = tensors[f"{one}.scale"]
    expected = logits(write(tmp_path / "apart.gguf", model, tensors))
    for name, parts in FUSED.items():
        for layer in range(2):
            names = [f"blk.{layer}.{part}" for part in parts]
            tensors[f"blk.{layer}.{name}.scale"] = tensors[f"{names[0]}.scale"]
            tensors[f"blk.{layer}.{name}.weight"] = stacked([tensors[f"{n}.weight"] for n in names])
            for n in names:
                del tensors[f"{n}.weight"], tensors[f"{n}.scale"], tensors[f"{n}.input_scale"]
    fused = write(tmp_path / "fused.gguf", model, tensors)
    assert_close(logits(fused), expected)
    assert usual_error(logits(fused, CPU), expected) < 0.03


def stacked(parts: list[Tensor]) -> Tensor:
    """One above the other, expert by expert where there are such."""
    outer = parts[0].shape[:-2]
    bytes_of = [part.data.reshape(*outer, part.shape[-2], -1) for part in parts]
    data = np.concatenate(bytes_of, axis=len(outer))
    shape = (*outer, sum(part.shape[-2] for part in parts), parts[0].shape[-1])
    return Tensor("stacked", parts[0].type, shape, np.ascontiguousarray(data).reshape(-1))


def test_quantised_files_keep_their_scales(tmp_path: Path) -> None:
    model = model_of("qwen3moe")
    path = write(tmp_path / "m.gguf", model, in_nvfp4(model))
    quantise_model(open_checkpoint(path), tmp_path / "q.gguf", TensorType.Q8_0)
    quantised = open_checkpoint(tmp_path / "q.gguf")
    assert quantised.tensors["blk.0.ffn_up_exps.weight"].type is TensorType.Q8_0
    assert usual_error(logits(tmp_path / "q.gguf"), logits(path)) < 0.03
    assert usual_error(logits(tmp_path / "q.gguf", CPU), logits(path)) < 0.03


def test_scales_follow_their_experts(tmp_path: Path) -> None:
    model = model_of("qwen3moe", activation="relu")
    path = write(tmp_path / "m.gguf", model, in_nvfp4(model))
    source = open_checkpoint(path)
    convert(source, tmp_path / "n.gguf", random_profile(source, seed=3))
    assert usual_error(logits(tmp_path / "n.gguf"), logits(path)) < 0.03
    assert usual_error(logits(tmp_path / "n.gguf", CPU), logits(path)) < 0.03


def changed(name: str, values: F32) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensor_from_array(name, values)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("blk.0.attn_q.scale", np.ones(2, np.float32)),
            r"blk\.0\.attn_q\.scale: expected shape \[1\]",
        ),
        (
            changed("blk.1.ffn_up_exps.scale", np.ones(5, np.float32)),
            r"ffn_up_exps\.scale: expected shape \[6\]",
        ),
        (changed("blk.0.attn_q.scale", np.full(1, np.nan, np.float32)), "not finite"),
        (changed("blk.0.nothing.scale", np.ones(1, np.float32)), r"blk\.0\.nothing\.scale' is unexpected"),
    ],
)
def test_wrong_scales(change: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    model = model_of("qwen3moe")
    tensors = in_nvfp4(model)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(tmp_path / "m.gguf", model, tensors))
