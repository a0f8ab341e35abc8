"""GGUF files from parts, as honest or as damaged as a test wants them."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hotset.architectures.row import OF_ATTENTION, OF_DENSE, OF_RECURRENT, SHAPES, Architecture
from hotset.architectures.table import ARCHITECTURES
from hotset.formats.tensor_table import ONLY_BIAS, is_global

_ALIGNMENT = 32


def pack_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pack_value(value: Any) -> bytes:
    """A value with its type, which Python's type decides; bytes are taken for packed already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        kind, code = (4, "I") if 0 <= value < 2**32 else (10, "Q") if value > 0 else (11, "q")
        return struct.pack("<I" + code, kind, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + pack_string(value)
    kind = pack_value(value[0])[:4] if value else struct.pack("<I", 4)
    return (
        struct.pack("<I", 9)
        + kind
        + struct.pack("<Q", len(value))
        + b"".join(pack_value(v)[4:] for v in value)
    )


@dataclass
class TensorLine:
    """A tensor's line in the header, `shape` in NumPy's order; by default it follows its predecessor."""

    name: str
    shape: tuple[int, ...]
    data: bytes
    type: int = 0
    offset: int | None = None


@dataclass
class GGUFBytes:
    """A file's parts; the counts can be lied about."""

    keys: Mapping[str, Any] | list[tuple[str, Any]]
    tensors: list[TensorLine] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None

    def to_bytes(self) -> bytes:
        keys = list(self.keys.items()) if isinstance(self.keys, Mapping) else self.keys
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(keys) if self.n_keys is None else self.n_keys
        header = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        for key, value in keys:
            header += pack_string(key) + pack_value(value)
        body = b""
        for tensor in self.tensors:
            offset = len(body) if tensor.offset is None else tensor.offset
            header += pack_string(tensor.name) + struct.pack("<I", len(tensor.shape))
            header += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
            header += struct.pack("<IQ", tensor.type, offset)
            body += tensor.data + bytes(-len(tensor.data) % _ALIGNMENT)
        return header + bytes(-len(header) % _ALIGNMENT) + body


SIZES = {
    "V": 6,
    "P": 34,
    "D": 8,
    "F": 12,
    "Q": 8,
    "K": 4,
    "H": 4,
    "A": 2,
    "E": 3,
    "X": 5,
    "Y": 7,
    "1": 1,
    "L": 3,
    "J": 3,
}
ABSENT = ("output", "attn_norm_2", "ffn_gate_up_exps", "ffn_gate_up", "ssm_in", "ssm_ba")
"""What may be absent."""
DELTA_NET = {"G": 16, "B": 4, "T": 2, "Z": 8, "C": 16, "W": 3}
SHORT_CONV = {"U": 24, "C": 8, "W": 3}
LATENT = {"r": 5, "q": 12, "k": 8, "c": 4, "n": 2, "v": 3, "o": 6}
LATENT_KEYS = {
    "attention.key_length": 8,
    "attention.value_length": 4,
    "attention.key_length_mla": 6,
    "attention.value_length_mla": 3,
    "attention.kv_lora_rank": 4,
    "attention.q_lora_rank": 5,
    "rope.dimension_count": 4,
}
MAMBA = {"I": 34, "C": 24, "W": 3, "T": 2, "Z": 8}
DELTA_NET_KEYS = {"time_step_rank": 2, "group_count": 1, "state_size": 4, "conv_kernel": 3, "inner_size": 8}


def shape_of(architecture: Architecture, part: str) -> tuple[int, ...]:
    """A weight of a tiny model."""
    if part == "attn_qkv":
        return 16, 8
    own = SHORT_CONV if architecture.short_conv else MAMBA if architecture.mamba else DELTA_NET
    return tuple((SIZES | LATENT | own)[letter] for letter in {**SHAPES, **architecture.shapes}[part])


def lacks(architecture: Architecture, part: str) -> bool:
    """Whether a tiny model has no tensor of that kind, though the family's models may have."""
    experts = architecture.experts
    if part in (*ABSENT, "ffn_gate_up_shexp") or (architecture.latent and part in ("attn_q", "attn_kv_b")):
        return True
    if experts and experts.averaged and part == "ffn_gate_inp_shexp":
        return True
    return bool(experts and part in OF_DENSE and not experts.beside)


def _keys(architecture: Architecture) -> dict[str, Any]:
    """A tiny model's key-values."""
    name = architecture.name
    keys = {
        "general.architecture": name,
        f"{name}.context_length": 32,
        f"{name}.embedding_length": 8,
        f"{name}.block_count": 1,
        f"{name}.feed_forward_length": 12,
        f"{name}.attention.head_count": 2,
        f"{name}.attention.head_count_kv": 1,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{name}.attention.layer_norm_epsilon": 1e-5,
        "tokenizer.ggml.tokens": ["a", "bc", "", "ä", "d", "e"],
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3],
    }
    if architecture.experts:
        keys |= {f"{name}.expert_count": 3, f"{name}.expert_used_count": 2}
    if architecture.delta_net:  # which the first layer is
        keys |= {f"{name}.ssm.{key}": value for key, value in DELTA_NET_KEYS.items()}
    if architecture.short_conv:
        keys |= {f"{name}.shortconv.l_cache": 3, f"{name}.attention.head_count_kv": [0]}
    if architecture.mamba:  # which no layer is
        size = 5 if architecture.experts else 12
        keys |= {f"{name}.ssm.{key}": value for key, value in DELTA_NET_KEYS.items()}
        own = {"attention.head_count_kv": [int(not architecture.single)], "feed_forward_length": [size]}
        keys |= {f"{name}.{key}": value for key, value in own.items()}
    if architecture.by_layer:
        keys[f"{name}.attention.key_length"] = 4
    if "inp_gate" in architecture.tensors:
        keys[f"{name}.embedding_length_per_layer_input"] = 3
    if architecture.latent:
        keys |= {f"{name}.{key}": value for key, value in LATENT_KEYS.items()}
    return keys


def tiny_model(architecture: Architecture, **changes: Any) -> GGUFBytes:
    """One layer, two heads of four; `changes` replace key-values (None: leave out), their dots as ``__``."""
    keys = _keys(architecture)
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    rng = np.random.default_rng(0)
    tensors = []
    recurrent = architecture.delta_net or architecture.short_conv or architecture.mamba
    for part in architecture.tensors:
        if part == "attn_qkv" and "attn_q" in architecture.tensors and not recurrent:
            continue
        without = architecture.delta_net or architecture.short_conv or architecture.single
        if (without and part in OF_ATTENTION) or lacks(architecture, part):
            continue
        if architecture.mamba and part in OF_RECURRENT:
            continue
        place = part if is_global(part) else f"blk.0.{part}"
        shape = shape_of(architecture, part)
        parts = {"bias" if part == ONLY_BIAS else "weight": shape}
        if part in architecture.always_biased:
            parts["bias"] = shape[:-1] or shape
        for suffix, dims in parts.items():
            numbers = rng.standard_normal(dims).astype("<f4")
            data = (np.abs(numbers) if part.endswith("_scale") else numbers).tobytes()
            tensors.append(TensorLine(f"{place}.{suffix}", dims, data))
    return GGUFBytes({key: value for key, value in keys.items() if value is not None}, tensors)


def by_neuron(file: GGUFBytes) -> GGUFBytes:
    """A tiny model as PowerInfer stores it: down transposed, a predictor in its only layer."""
    tensors = []
    for tensor in file.tensors:
        shape = tensor.shape[::-1] if tensor.name == "blk.0.ffn_down.weight" else tensor.shape
        tensors.append(TensorLine(tensor.name.replace("ffn_down.", "ffn_down_t."), shape, tensor.data))
    width, hidden, ffn = 3, SIZES["D"], SIZES["F"]
    for name, shape in (("fc1", (width, hidden)), ("fc2", (ffn, width))):
        data = np.ones(shape, "<f4").tobytes()
        tensors.append(TensorLine(f"blk.0.{name}.weight", shape, data))
    keys = dict(file.keys) | {"powerinfer.sparse_threshold": 0.5}
    return GGUFBytes(keys, tensors, magic=b"PWRI")


def tiny_llama(**changes: Any) -> GGUFBytes:
    return tiny_model(ARCHITECTURES[0], **changes)


def split(whole: GGUFBytes, parts: int) -> list[GGUFBytes]:
    """The parts of a split model: all key-values in the first, tensors dealt out in order."""
    size = -(-len(whole.tensors) // parts)
    files = []
    for number in range(parts):
        keys = {"split.no": number, "split.count": parts, "split.tensors.count": len(whole.tensors)}
        tensors = whole.tensors[number * size : (number + 1) * size]
        files.append(GGUFBytes({**dict(whole.keys), **keys} if number == 0 else keys, tensors))
    return files
