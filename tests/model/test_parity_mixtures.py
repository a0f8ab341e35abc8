"""Mixtures of experts against `transformers` and llama.cpp, on tiny random weights."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.gguf_export import export_gguf
from helpers.parity import LENGTH, TOKENS, Peer, assert_close, run_peer
from helpers.random_gguf import TOKENS as RANDOM_TOKENS
from helpers.random_gguf import smallthinker
from helpers.tiny_mixtures import NOT_IN_GGUF, gpt_oss, tiny_mixtures
from helpers.tiny_models import save
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Span
from hotset.core.errors import CheckpointError
from hotset.formats import TensorType, open_checkpoint
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer

IN_GGUF = [name for name in tiny_mixtures() if name not in NOT_IN_GGUF]


def opened(path: Path) -> Transformer:
    return build_transformer(open_checkpoint(path), ReferenceBackend())


def forward(path: Path) -> NDArray[np.float32]:
    model = opened(path)
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Peer]:
    """The tiny mixture of a name, in a directory as Hugging Face's and as ``model.gguf``, and run."""

    @cache
    def peer(name: str) -> Peer:
        model = tiny_mixtures()[name]()
        directory = tmp_path_factory.mktemp(name)
        save(model, directory)
        if name in IN_GGUF:
            export_gguf(model, directory / "model.gguf")
        return Peer(model, directory, run_peer(model))

    return peer


@pytest.mark.parametrize("name", tiny_mixtures())
def test_directory(name: str, mixtures: Callable[[str], Peer]) -> None:
    """At once, and in a batch with other sequences' rows, some of them single tokens."""
    peer = mixtures(name)
    model = opened(peer.path)
    whole, parts, tail = (model.sequence(LENGTH, "f32") for _ in range(3))
    assert_close(model.forward(Batch.of(whole, TOKENS, logits=None)), peer.logits)

    model.forward(Batch.of(tail, TOKENS[:40], logits=0))
    found = []
    for start, stop, single in ((0, 20, 40), (20, 21, 41), (21, LENGTH, 42)):
        tokens = np.concatenate([TOKENS[start:stop], TOKENS[single : single + 1]])
        spans = Span(parts, stop - start, logits=stop - start), Span(tail, 1, logits=1)
        logits = model.forward(Batch(tokens, spans))
        found.append(logits[:-1])
        assert_close(logits[-1:], peer.logits[single : single + 1])
    assert_close(np.concatenate(found), peer.logits)


@pytest.mark.parametrize("name", tiny_mixtures())
def test_cpu(name: str, mixtures: Callable[[str], Peer]) -> None:
    """The CPU backend, with several rows at once and with one after the other."""
    peer = mixtures(name)
    model = build_transformer(open_checkpoint(peer.path), CpuBackend(2))
    assert_close(model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None)), peer.logits)
    sequence = model.sequence(LENGTH, "f32")
    rows = [model.forward(Batch.of(sequence, TOKENS[i : i + 1], logits=None)) for i in range(LENGTH)]
    assert_close(np.concatenate(rows), peer.logits)


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf(name: str, mixtures: Callable[[str], Peer]) -> None:
    peer = mixtures(name)
    assert_close(forward(peer.path / "model.gguf"), peer.logits)


# llama.cpp has no key for where YaRN's ramp ends: it rounds.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IN_GGUF if name != "gpt-oss-yarn-between"])
def test_llama_cpp(name: str, mixtures: Callable[[str], Peer]) -> None:
    pytest.importorskip("llama_cpp")
    from helpers.llama_cpp import llama_cpp_logits

    path = mixtures(name).path / "model.gguf"
    assert_close(forward(path), llama_cpp_logits(path, TOKENS), 1e-3)


@pytest.mark.parametrize("window", [None, 5])
def test_smallthinker_on_the_cpu(window: int | None, tmp_path: Path) -> None:
    path = smallthinker(tmp_path / "model.gguf", window, 2)
    config = open_checkpoint(path).config
    assert [layer.rope is None for layer in config.layers] == [bool(window), False]
    assert [layer.window for layer in config.layers] == [None, window]
    assert all(layer.experts.early for layer in config.layers)
    reference, model = opened(path), build_transformer(open_checkpoint(path), CpuBackend(2))
    logits = [
        m.forward(Batch.of(m.sequence(32, "f32"), RANDOM_TOKENS, logits=None)) for m in (model, reference)
    ]
    assert_close(*logits)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("gating", [1, 2], ids=["softmax", "sigmoid"])
def test_smallthinker(window: int | None, gating: int, tmp_path: Path) -> None:
    """Against llama.cpp alone, which takes any window for 4,096: transformers has no such model."""
    pytest.importorskip("llama_cpp")
    from helpers.llama_cpp import llama_cpp_logits

    path = smallthinker(tmp_path / "model.gguf", window, gating)
    loaded = opened(path)
    logits = loaded.forward(Batch.of(loaded.sequence(32, "f32"), RANDOM_TOKENS, logits=None))
    assert_close(logits, llama_cpp_logits(path, RANDOM_TOKENS), 1e-3)


def test_mxfp4_of_the_hub(tmp_path: Path) -> None:
    """gpt-oss's published layout, against `transformers` on the numbers that it stands for."""
    import torch

    model = gpt_oss(hidden_size=64, intermediate_size=32)
    save(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    rng = np.random.default_rng(2)
    codes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.concatenate([codes, -codes])
    for layer, block in enumerate(model.model.layers):
        for part in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            count, columns, rows = weights.pop(name).shape
            blocks = rng.integers(0, 256, (count, rows, columns // 32, 16), np.uint8)
            scales = rng.integers(122, 125, (count, rows, columns // 32), np.uint8)
            weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            pairs = values[np.stack([blocks & 15, blocks >> 4], axis=-1)].reshape(count, rows, -1, 32)
            numbers = (pairs * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(count, rows, -1)
            getattr(block.mlp.experts, part).data.copy_(torch.from_numpy(numbers).transpose(1, 2))
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).tensors["blk.0.ffn_up_exps.weight"].type is TensorType.MXFP4
    assert_close(forward(tmp_path), run_peer(model))

    name = "model.layers.1.mlp.experts.down_proj_scales"
    for change, message in (
        ({}, rf"{name} is missing"),
        ({name: weights[name][:, 1:].copy()}, rf"{name}: expected shape \[6, 64, 1\], found \[6, 63, 1\]"),
        ({name: weights[name], "x": weights[name]}, r"tensor x is unexpected"),
    ):
        save_file({n: t for n, t in weights.items() if n != name} | change, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)
