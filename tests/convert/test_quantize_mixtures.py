"""Mixtures of experts in fewer bits: every expert's matrices, and what stays as it is."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.llama_cpp import llama_cpp_logits
from helpers.parity import usual_error
from helpers.profiles import random_profile
from helpers.random_gguf import F32, TOKENS, VOCABULARY, random_model, read_by_library, write_plain
from helpers.tiny_mixtures import qwen3moe
from helpers.tiny_models import save

from hotset.backends.cpu import CpuBackend
from hotset.convert.by_neuron import convert
from hotset.convert.quantize import FILE_TYPES, quantise, quantise_model
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats import TensorType, open_checkpoint
from hotset.model.build import build_transformer

CPU = CpuBackend(threads=2)


def written(path: Path, name: str, *, expert: int = 64, activation: str | None = None) -> Path:
    model = random_model(name, hidden=128, expert=expert, activation=activation)
    keys = {**model.keys, "tokenizer.ggml.model": "no_vocab", f"{name}.vocab_size": VOCABULARY}
    if name == "smallthinker":
        keys |= {"smallthinker.expert_gating_func": 2}
    return write_plain(path, replace(model, keys=keys), Q.F32)


def logits(path: Path) -> F32:
    model = build_transformer(open_checkpoint(path), CPU)
    return model.forward(Batch.of(model.sequence(len(TOKENS), "f32"), TOKENS, logits=None))


@pytest.mark.parametrize("type", FILE_TYPES, ids=lambda type: type.name)
@pytest.mark.parametrize("name", ["qwen3moe", "qwen2moe", "smallthinker"])
def test_experts_take_the_type(name: str, type: TensorType, tmp_path: Path) -> None:
    source, out = written(tmp_path / "m.gguf", name), tmp_path / "q.gguf"
    quantise_model(open_checkpoint(source), out, type)
    values, found = read_by_library(source), read_by_library(out)
    for tensor in gguf.GGUFReader(out).tensors:
        stays = (
            "norm" in tensor.name
            or "bias" in tensor.name
            or "_inp" in tensor.name
            or "down_shexp" in tensor.name
        )  # 40 columns
        expected = Q.F32 if stays else Q.Q8_0 if tensor.name == "output.weight" else Q(type)
        assert tensor.tensor_type == expected, tensor.name
        most = 0 if stays else 0.2 if type is TensorType.MXFP4 else 0.15
        difference = np.linalg.norm(found[tensor.name] - values[tensor.name])
        assert difference <= most * np.linalg.norm(values[tensor.name]), tensor.name
    stack = values["blk.1.ffn_down_exps.weight"]
    alone = np.concatenate([quantise(np.ascontiguousarray(expert), type) for expert in stack])
    assert np.array_equal(open_checkpoint(out).tensors["blk.1.ffn_down_exps.weight"].data, alone)
    if type is TensorType.Q8_0:
        assert usual_error(logits(out), logits(source)) < 0.05


def test_rows_that_are_no_whole_blocks_stay(tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    quantise_model(open_checkpoint(written(tmp_path / "m.gguf", "qwen3moe", expert=24)), out, TensorType.Q4_0)
    tensors = open_checkpoint(out).tensors
    assert tensors["blk.0.ffn_down_exps.weight"].type is TensorType.F32
    assert tensors["blk.0.ffn_up_exps.weight"].type is TensorType.Q4_0


def test_llama_cpp_runs_them(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    out = tmp_path / "q.gguf"
    quantise_model(open_checkpoint(written(tmp_path / "m.gguf", "qwen3moe")), out, TensorType.Q4_1)
    assert usual_error(logits(out), llama_cpp_logits(out, TOKENS)) < 0.06


@pytest.mark.parametrize("type", FILE_TYPES, ids=lambda type: type.name)
def test_then_by_neuron(type: TensorType, tmp_path: Path) -> None:
    """Experts' neurons are rounded once more at most, to eight bits where they were of four."""
    source = written(tmp_path / "m.gguf", "smallthinker")
    quantise_model(open_checkpoint(source), tmp_path / "q.gguf", type)
    quantised = open_checkpoint(tmp_path / "q.gguf")
    result = convert(quantised, tmp_path / "n.gguf", random_profile(quantised, seed=3))
    assert max(result.down_error) < 0.01
    assert usual_error(logits(tmp_path / "n.gguf"), logits(tmp_path / "q.gguf")) < 0.05


def test_what_is_refused(tmp_path: Path) -> None:
    source = open_checkpoint(written(tmp_path / "m.gguf", "qwen3moe"))
    with pytest.raises(HotsetError, match=r"m\.gguf: mixtures of experts, .* leave out the text$"):
        quantise_model(source, tmp_path / "q.gguf", TensorType.Q4_0, [TOKENS])
    save(qwen3moe(), tmp_path / "hub")
    with pytest.raises(CheckpointError, match="mixtures of experts are written from GGUF files only"):
        quantise_model(open_checkpoint(tmp_path / "hub"), tmp_path / "q.gguf", TensorType.Q4_0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "m.gguf"]
