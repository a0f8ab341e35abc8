"""Files as PowerInfer's converters and its quantiser write them, byte for byte, of small random models.

Its two converters differ: one writes Llama and Bamboo (predictors behind the model's tensors), the other
Falcon and OPT (predictors first, no name of a pre-tokenizer). A missing ``model_K.pt`` drops the predictors
from layer K on. The quantiser keeps keys and order, and chooses a type for every matrix, position embeddings
among them.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Q

from helpers.gguf_bytes import GGUFBytes, TensorLine, pack_string
from helpers.gguf_export import quantise
from helpers.random_gguf import CONTEXT, F32, FFN, HEADS, LAYERS, VOCABULARY, RandomModel, random_model

WRITES_FALCON_AND_OPT = ("falcon", "opt")
FILE_TYPES = {
    **{Q.F32: 0, Q.F16: 1, Q.Q4_0: 2, Q.Q4_1: 3, Q.Q8_0: 7, Q.Q5_0: 8, Q.Q5_1: 9},
    **{Q.Q4_K: 15, Q.Q5_K: 17, Q.Q6_K: 18},
}
"""Types by which whole files are called, and what `general.file_type` says of them; of the K-quants, M."""
_FALLBACK = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
"""Where rows are no multiple of 256."""

BYTES = [
    *(chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))),
    *(chr(256 + i) for i in range(68)),
]
"""GPT-2's alphabet: a printable character for every byte."""


def int32s(values: list[int]) -> bytes:
    """An array of INT32 with its type: Python integers are such in the converters' arrays."""
    return struct.pack(f"<IIQ{len(values)}i", 9, 5, len(values), *values)


def strings(values: list[str]) -> bytes:
    return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(pack_string, values))


def float32s(values: list[float]) -> bytes:
    return struct.pack(f"<IIQ{len(values)}f", 9, 6, len(values), *values)


@dataclass(frozen=True)
class PowerInferFile:
    """Key-values in their order (`helpers.gguf_bytes.pack_value`), and tensors with their types."""

    model: RandomModel
    keys: dict[str, Any]
    tensors: tuple[tuple[str, F32, Q], ...]

    def to_bytes(self) -> bytes:
        lines = [
            TensorLine(name, values.shape, quantise(np.ascontiguousarray(values), kind).tobytes(), int(kind))
            for name, values, kind in self.tensors
        ]
        return GGUFBytes(self.keys, lines, magic=b"PWRI").to_bytes()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.to_bytes())
        return path


def sparse_model(name: str, hidden: int = 64) -> RandomModel:
    """A model of one of the four architectures, with the vocabulary of `tokenizer_keys`."""
    model = random_model(name, activation=None if name == "bamboo" else "relu", hidden=hidden)
    rows = vocabulary_size(name)
    rng = np.random.default_rng(3)
    ends = {part: model.weights.get(f"{part}.weight") for part in ("token_embd", "output")}
    weights = {
        f"{part}.weight": (rng.standard_normal((rows, hidden)) * 1.2 / hidden**0.5).astype(np.float32)
        for part, values in ends.items()
        if values is not None
    }
    return replace(model, weights={**model.weights, **weights})


def vocabulary_size(name: str) -> int:
    return 300 if name in WRITES_FALCON_AND_OPT else 3 + 256 + VOCABULARY


def tokenizer_keys(name: str) -> dict[str, Any]:
    """As ``SpecialVocab`` and the converters write them."""
    size = vocabulary_size(name)
    if name not in WRITES_FALCON_AND_OPT:
        words = ["\u2581", "h", "e", "l", "o", "he", "ll", "\u2581he", "\u2581hell"]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
        tokens += [f"word{i}" for i in range(size - len(tokens))]
        types = [2, 3, 3, *[6] * 256]
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": strings(tokens),
            "tokenizer.ggml.scores": float32s([0.0] * 259 + [-float(i) for i in range(size - 259)]),
            "tokenizer.ggml.token_type": int32s(types + [1] * (size - len(types))),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": False,
        }
    special = ["<|endoftext|>"] if name == "falcon" else ["<s>", "<pad>", "</s>", "<unk>"]
    tokens = [*special, *BYTES, "he", "ll", "hell", "\u0120hell"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    merges = ["h e", "l l", "he ll", "\u0120 hell"]
    types = [3] * len(special) + [1] * 260 + [4] * (size - 260 - len(special))  # padding is "user-defined"
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": int32s(types),
        "tokenizer.ggml.merges": strings(merges),
    }
    if name == "falcon":
        return keys | {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0}
    return keys | {
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }


def converted(
    name: str,
    kind: Q = Q.F16,
    *,
    predictor: Callable[[int, int], tuple[F32, F32]],
    threshold: float | None = None,
    predicted_layers: int = LAYERS,
    hidden: int = 64,
) -> PowerInferFile:
    """What the converter makes of a model (its matrices F32 or F16).

    `predictor` gives a layer's fc1 (r, D) and fc2 (F, r), for the layer's number and D.
    """
    model = sparse_model(name, hidden)
    predictors = {
        f"blk.{layer}.{part}.weight": values
        for layer in range(predicted_layers)
        for part, values in zip(("fc1", "fc2"), predictor(layer, hidden), strict=True)
    }
    weights = {}
    for given, values in model.weights.items():
        turned = "ffn_down." in given
        weights[given.replace("ffn_down.", "ffn_down_t.")] = values.T if turned else values
    if name not in WRITES_FALCON_AND_OPT:  # which also leaves the biases' name as it is; these have none
        weights |= predictors
    else:
        weights = predictors | weights
    tensors = [(given, values, kind if values.ndim == 2 else Q.F32) for given, values in weights.items()]
    return PowerInferFile(model, _keys(name, model, kind, threshold), tuple(tensors))


def _keys(name: str, model: RandomModel, kind: Q, threshold: float | None) -> dict[str, Any]:
    stated = {key.removeprefix(f"{name}."): value for key, value in model.keys.items()}
    hidden = stated["embedding_length"]
    sizes = {"embedding_length": hidden, "block_count": LAYERS, "feed_forward_length": FFN}
    heads = {"attention.head_count": HEADS}
    if name == "falcon":
        # The converter itself takes 4 * hidden for the FFN's size, as Falcon's is.
        own = {
            "context_length": CONTEXT,
            "tensor_data_layout": "jploski",
            "embedding_length": hidden,
            "feed_forward_length": FFN,
            "block_count": LAYERS,
            **heads,
            "attention.head_count_kv": stated["attention.head_count_kv"],
            "attention.layer_norm_epsilon": 1e-5,
        }
        title = "Falcon"
    elif name == "opt":
        own = {"context_length": CONTEXT + 2, **sizes, **heads}
        title = "opt"
    else:
        own = {
            "context_length": CONTEXT,
            **sizes,
            "rope.dimension_count": hidden // HEADS,
            **heads,
            "attention.head_count_kv": stated["attention.head_count_kv"],
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 1e4,
        }
        title = "LLaMA v2"
    keys: dict[str, Any] = {"general.architecture": name, "general.name": title}
    keys |= {f"{name}.{key}": value for key, value in own.items()}
    keys["general.file_type"] = FILE_TYPES[kind]
    if threshold is not None:
        keys["powerinfer.sparse_threshold"] = threshold
    return keys | tokenizer_keys(name)


def quantised(file: PowerInferFile, kind: Q) -> PowerInferFile:
    """What PowerInfer's ``quantize`` makes of a converted file."""
    keys = file.keys | {"general.quantization_version": 2, "general.file_type": FILE_TYPES[kind]}
    name = file.model.architecture
    tensors = [
        (given, values, _quantised_type(name, given, values.shape, kind) if values.ndim == 2 else old)
        for given, values, old in file.tensors
    ]
    return PowerInferFile(file.model, keys, tuple(tensors))


def _quantised_type(name: str, tensor: str, shape: tuple[int, ...], kind: Q) -> Q:
    part = tensor.split(".")[-2]
    if part == "output":
        if name == "falcon" or shape[1] % 256:
            return Q.Q8_0
        return kind if kind is Q.Q8_0 else Q.Q6_K
    if part in ("fc1", "fc2"):
        return Q.Q4_0 if kind is Q.Q4_0 else Q.Q5_0
    if tensor == "blk.1.attn_v.weight" and kind in (Q.Q4_K, Q.Q5_K):
        kind = Q.Q6_K  # more bits for the last layer of two
    if part == "attn_qkv" and kind in (Q.Q4_K, Q.Q5_K):
        kind = Q.Q5_K if kind is Q.Q4_K else Q.Q6_K
    return _FALLBACK.get(kind, kind) if shape[1] % 256 else kind
