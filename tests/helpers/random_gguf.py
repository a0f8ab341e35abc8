"""GGUF files of small random models, plain or in PowerInfer's format, by the `gguf` library."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray

from helpers.gguf_export import quantise
from helpers.small_tokenizers import byte_level
from hotset.architectures.row import SHAPES
from hotset.architectures.table import ARCHITECTURES
from hotset.formats.tensor_table import is_global

F32 = NDArray[np.float32]
VOCABULARY, CONTEXT, LAYERS, HEADS = 48, 32, 2, 4
FFN = 96
TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, 12).astype(np.int32)


@dataclass(frozen=True)
class RandomModel:
    """Key-values and float32 weights by GGUF's names."""

    architecture: str
    keys: Mapping[str, Any]
    weights: Mapping[str, F32]


def random_model(
    name: str,
    *,
    two_norms: bool = False,
    activation: str | None = None,
    hidden: int = 64,
    ffn: int = FFN,
    expert: int = 24,
) -> RandomModel:
    """A model of an architecture's first row; `two_norms` as in Falcon-40B."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    kv_heads = HEADS if name == "opt" else 1 if name == "falcon" and not two_norms else 2
    head = hidden // HEADS
    keys: dict[str, Any] = {
        "context_length": CONTEXT,
        "embedding_length": hidden,
        "block_count": LAYERS,
        "feed_forward_length": ffn,
        "attention.head_count": HEADS,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
    }
    keys = {f"{name}.{key}": value for key, value in keys.items()}
    if activation:
        keys["hotset.activation"] = activation
    sizes = {
        "V": VOCABULARY,
        "P": CONTEXT + 2,
        "D": hidden,
        "F": ffn,
        "Q": hidden,
        "K": kv_heads * head,
        "H": head,
    }
    sizes |= {"A": HEADS, "E": 6, "X": expert, "Y": 40, "1": 1}
    if architecture.experts:
        keys |= {f"{name}.expert_count": 6, f"{name}.expert_used_count": 3}
        keys |= {f"{name}.expert_feed_forward_length": expert}
    rng = np.random.default_rng(0)
    weights: dict[str, F32] = {}
    for part in architecture.tensors:
        if part == "output" and name == "opt":  # tied
            continue
        if part == "attn_norm_2" and not two_norms:
            continue
        if part == "ffn_gate_up_exps":
            continue
        qkv = (hidden + 2 * kv_heads * head, hidden)
        shape = qkv if part == "attn_qkv" else tuple(sizes[letter] for letter in SHAPES[part])
        for layer in range(1 if is_global(part) else LAYERS):
            prefix = part if is_global(part) else f"blk.{layer}.{part}"
            values = rng.standard_normal(shape) * 1.2 / np.sqrt(shape[-1])
            if len(shape) == 1:
                values = rng.random(shape) + 0.5
            weights[f"{prefix}.weight"] = values.astype(np.float32)
            if part in architecture.always_biased:
                weights[f"{prefix}.bias"] = 0.2 * rng.standard_normal(shape[0]).astype(np.float32)
    return RandomModel(name, keys, weights)


def write_plain(path: Path, model: RandomModel, kind: Q = Q.F16) -> Path:
    """The model as llama.cpp would store it, its matrices as `kind`."""
    return _write(path, model, model.weights, lambda name, values: kind)


def smallthinker(path: Path, window: int | None, gating: int) -> Path:
    """A random model's file: an early router, ReGLU experts."""
    model = random_model("smallthinker")
    keys = {"smallthinker.expert_gating_func": gating, "tokenizer.ggml.model": "no_vocab"}
    keys |= {"smallthinker.vocab_size": VOCABULARY}
    if window:
        keys["smallthinker.attention.sliding_window"] = window
    return write_plain(path, replace(model, keys={**model.keys, **keys}), Q.F32)


def write_readable(path: Path, model: RandomModel) -> Path:
    """The model, a Llama, with a tokenizer of bytes and a context of 64 tokens, in F32."""
    tokenizer = byte_level()
    count, hidden = len(tokenizer["tokenizer.ggml.tokens"]), model.keys["llama.embedding_length"]
    rng = np.random.default_rng(0)
    for name in ("token_embd.weight", "output.weight"):
        model.weights[name] = rng.standard_normal((count, hidden)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**model.keys, "llama.context_length": 64}.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for key, value in tokenizer.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value) if isinstance(value[0], str) else [int(v) for v in value])
    for name, values in model.weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_powerinfer(
    path: Path,
    model: RandomModel,
    kind: Q = Q.F16,
    *,
    predictor: Callable[[int], tuple[F32, F32]],
    threshold: float | None,
    predictor_kind: Q | None = None,
    output_kind: Q | None = None,
) -> Path:
    """The model in PowerInfer's format; `predictor` gives a layer's fc1 (r, D) and fc2 (F, r)."""
    weights: dict[str, F32] = {}
    for name, values in model.weights.items():
        turned = name.replace("ffn_down", "ffn_down_t")
        weights[turned] = values.T if turned != name and values.ndim == 2 else values
    for layer in range(LAYERS):
        for part, values in zip(("fc1", "fc2"), predictor(layer), strict=True):
            weights[f"blk.{layer}.{part}.weight"] = values

    def kind_of(name: str, values: F32) -> Q:
        if ".fc" in name:
            return predictor_kind or kind
        return output_kind or kind if name == "output.weight" else kind

    keys = {key: value for key, value in model.keys.items() if not key.startswith("hotset.")}
    if threshold is not None:
        keys["powerinfer.sparse_threshold"] = threshold
    _write(path, RandomModel(model.architecture, keys, {}), weights, kind_of)
    path.write_bytes(b"PWRI" + path.read_bytes()[4:])
    return path


def read_by_library(path: Path) -> dict[str, F32]:
    """All tensors of a GGUF or PowerInfer file as the `gguf` library reads and dequantises them."""
    copy = path.with_name(path.name + ".copy")
    copy.write_bytes(b"GGUF" + path.read_bytes()[4:])
    tensors = gguf.GGUFReader(copy).tensors
    values = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in tensors}
    copy.unlink()
    return values


def plain_twin(file: Path, model: RandomModel, path: Path) -> Path:
    """A plain F32 file of the very numbers that a file stored by neuron has."""
    weights: dict[str, F32] = {}
    for name, values in read_by_library(file).items():
        if ".fc" not in name and "ffn_profile" not in name:
            turned = name.replace("ffn_down_t", "ffn_down")
            weights[turned] = values.T if turned != name and values.ndim == 2 else values
    return _write(path, model, weights, lambda name, values: Q.F32)


def _write(
    path: Path, model: RandomModel, weights: Mapping[str, F32], kind_of: Callable[[str, F32], Q]
) -> Path:
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, value in model.keys.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    for name, values in weights.items():
        kind = kind_of(name, values) if values.ndim == 2 else Q.F32
        data = quantise(np.ascontiguousarray(values), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
