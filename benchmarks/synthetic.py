"""Write a GGUF file of a real model's shape with random weights, in seconds: speed tests without a download.

The blocks are random but valid and scaled by 1/sqrt(columns), so activations stay finite; what such a model
says means nothing, and `general.name` says so. A byte-level SentencePiece vocabulary is padded to the shape's
size. Types follow `llama-quantize`: the output matrix of a quantised file is Q6_K, and a K-quant gives way to
the next legacy type where the columns are no multiple of 256.

    python benchmarks/synthetic.py llama-2-7b --type q4_0 --out llama-2-7b-Q4_0.gguf
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import HotsetError
from hotset.formats.gguf_writer import NewTensor, write_gguf
from hotset.formats.tensor import TensorType as Q

TYPES = {
    kind.name.lower(): kind
    for kind in (
        *(Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K),
        *(Q.IQ4_NL, Q.IQ4_XS, Q.MXFP4, Q.F16, Q.BF16, Q.F32),
    )
}
FALLBACK = {
    Q.Q2_K: Q.Q4_0,
    Q.Q3_K: Q.Q4_0,
    Q.Q4_K: Q.Q5_0,
    Q.Q5_K: Q.Q5_1,
    Q.Q6_K: Q.Q8_0,
    Q.IQ4_XS: Q.IQ4_NL,
}
BUFFER_BYTES = 8 << 20


@dataclass(frozen=True)
class Shape:
    """A published model's sizes; names as in GGUF."""

    architecture: str
    vocab: int
    context: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    rope_base: float = 10000.0
    epsilon: float = 1e-5
    tied: bool = False

    @property
    def head_dim(self) -> int:
        """Numbers in one head."""
        return self.hidden // self.heads


SHAPES = {
    "llama-2-7b": Shape("llama", 32000, 4096, 4096, 11008, 32, 32, 32),
    "llama-2-13b": Shape("llama", 32000, 4096, 5120, 13824, 40, 40, 40),
    "llama-3-8b": Shape("llama", 128256, 8192, 4096, 14336, 32, 32, 8, rope_base=500000.0),
    "mistral-7b": Shape("llama", 32000, 32768, 4096, 14336, 32, 32, 8),
    "smollm2-135m": Shape("llama", 49152, 8192, 576, 1536, 30, 9, 3, rope_base=100000.0, tied=True),
    "qwen2.5-1.5b": Shape(
        "qwen2", 151936, 32768, 1536, 8960, 28, 12, 2, rope_base=1000000.0, epsilon=1e-6, tied=True
    ),
    "opt-6.7b": Shape("opt", 50272, 2048, 4096, 16384, 32, 32, 32, tied=True),
    # What llama.cpp runs in place of OPT, which it does not know: the same matrices, without a gate too.
    "opt-6.7b-as-falcon": Shape("falcon", 50272, 2048, 4096, 16384, 32, 32, 32, tied=True),
    "falcon-7b": Shape("falcon", 65024, 2048, 4544, 18176, 32, 71, 1, tied=True),
    "falcon-40b": Shape("falcon", 65024, 2048, 8192, 32768, 60, 128, 8),
}
OPT_POSITION_OFFSET = 2


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to write; ``fill`` is None for random values."""

    name: str
    shape: tuple[int, ...]
    type: Q
    fill: float | None = None


def matrix_type(wanted: Q, columns: int, *, output: bool = False) -> Q:
    """The type that a matrix gets in a file of the `wanted` type (see the module's docstring)."""
    if output and wanted not in (Q.Q8_0, Q.F16, Q.BF16, Q.F32):
        wanted = Q.Q6_K
    return FALLBACK.get(wanted, wanted) if columns % wanted.block_size else wanted


def plan(shape: Shape, layers: int, wanted: Q) -> list[TensorPlan]:
    """Every tensor of the model, in file order."""
    hidden, ffn, kv = shape.hidden, shape.ffn, shape.kv_heads * shape.head_dim
    layer_norm = shape.architecture in ("falcon", "opt")
    tensors: list[TensorPlan] = []

    def matrix(name: str, rows: int, columns: int, *, bias: bool = False, output: bool = False) -> None:
        kind = matrix_type(wanted, columns, output=output)
        tensors.append(TensorPlan(f"{name}.weight", (rows, columns), kind))
        if bias:
            tensors.append(TensorPlan(f"{name}.bias", (rows,), Q.F32, 0.0))

    def norm(name: str) -> None:
        tensors.append(TensorPlan(f"{name}.weight", (hidden,), Q.F32, 1.0))
        if layer_norm:
            tensors.append(TensorPlan(f"{name}.bias", (hidden,), Q.F32, 0.0))

    matrix("token_embd", shape.vocab, hidden, output=shape.tied)
    if shape.architecture == "opt":
        rows = shape.context + OPT_POSITION_OFFSET
        tensors.append(TensorPlan("position_embd.weight", (rows, hidden), Q.F32))
    for i in range(layers):
        block = f"blk.{i}"
        norm(f"{block}.attn_norm")
        if shape.architecture == "falcon":
            if shape.kv_heads > 1:
                norm(f"{block}.attn_norm_2")
            matrix(f"{block}.attn_qkv", hidden + 2 * kv, hidden)
        else:
            qkv_bias = shape.architecture in ("qwen2", "opt")
            matrix(f"{block}.attn_q", hidden, hidden, bias=qkv_bias)
            matrix(f"{block}.attn_k", kv, hidden, bias=qkv_bias)
            matrix(f"{block}.attn_v", kv, hidden, bias=qkv_bias)
        matrix(f"{block}.attn_output", hidden, hidden, bias=shape.architecture == "opt")
        if shape.architecture != "falcon":
            norm(f"{block}.ffn_norm")
        if not layer_norm:
            matrix(f"{block}.ffn_gate", ffn, hidden)
        matrix(f"{block}.ffn_up", ffn, hidden, bias=shape.architecture == "opt")
        matrix(f"{block}.ffn_down", hidden, ffn, bias=shape.architecture == "opt")
    norm("output_norm")
    if not shape.tied:
        matrix("output", shape.vocab, hidden, output=True)
    return tensors


def random_blocks(kind: Q, columns: int, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """`count` random valid blocks (count, block bytes); their numbers deviate by about 1/sqrt(columns).

    Block layouts: ggml's `ggml-common.h`. Quants are uniform bytes; only scales and offsets are chosen.
    """
    deviation = columns**-0.5
    if kind in (Q.F32, Q.F16, Q.BF16):
        values = rng.standard_normal((count, kind.block_size), dtype=np.float32) * np.float32(deviation)
        if kind is Q.F16:
            return values.astype("<f2").view(np.uint8)
        bits = values.astype("<f4").view("<u4")
        return (bits if kind is Q.F32 else (bits >> 16).astype("<u2")).view(np.uint8)

    blocks = rng.integers(0, 256, (count, kind.block_bytes), dtype=np.uint8)
    # Deviation of the quants around their centre, and that centre (for types that store an offset).
    spread, centre = {
        Q.Q4_0: (4.6, 0.0),
        Q.Q4_1: (4.6, 7.5),
        Q.Q5_0: (9.2, 0.0),
        Q.Q5_1: (9.2, 15.5),
        Q.Q8_0: (73.9, 0.0),
        Q.Q4_K: (4.6 * 36.4, 7.5),
        Q.Q5_K: (9.2 * 36.4, 15.5),
        Q.Q6_K: (18.5 * 73.9, 0.0),
        Q.Q2_K: (1.1 * 8.8, 1.5),
        Q.Q3_K: (2.3 * 18.5, 0.0),
        Q.IQ4_NL: (71.0, 0.0),
        Q.IQ4_XS: (71.0 * 18.5, 0.0),
        Q.MXFP4: (6.0, 0.0),
    }[kind]
    scale = rng.uniform(0.5, 1.5, (count, 1)) * deviation / spread

    def put(start: int, values: NDArray[np.float64]) -> None:
        blocks[:, start : start + 2] = values.astype("<f2").view(np.uint8)

    if kind is Q.MXFP4:  # its scale is a power of two, of which 2^-128 is the least
        blocks[:, :1] = np.round(np.log2(scale)) + 128
    else:
        put({Q.Q6_K: 208, Q.Q3_K: 108, Q.Q2_K: 80}.get(kind, 0), scale)
    if kind in (Q.Q4_1, Q.Q5_1):
        put(2, -centre * scale)
    if kind is Q.Q2_K:
        put(82, centre * scale)
        blocks[:, :16] = (blocks[:, :16] & 15) * 17  # likewise
    if kind in (Q.Q4_K, Q.Q5_K):
        put(2, centre * scale)
        # Every group's 6-bit minimum equals its 6-bit scale, which centres its numbers on zero.
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
    return blocks


def tensor_chunks(
    tensor: TensorPlan, buffers: dict[tuple[Q, int], NDArray[np.uint8]], rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes, piece by piece, from one random buffer a type and width, entered anywhere."""
    if tensor.fill is not None:
        yield np.full(tensor.shape, tensor.fill, "<f4").view(np.uint8)
        return
    columns = tensor.shape[-1]
    block_bytes = tensor.type.block_bytes
    key = (tensor.type, columns)
    if key not in buffers:
        buffers[key] = random_blocks(tensor.type, columns, BUFFER_BYTES // block_bytes, rng).reshape(-1)
    buffer = buffers[key]
    left = prod(tensor.shape) // tensor.type.block_size * block_bytes
    while left:
        start = int(rng.integers(0, BUFFER_BYTES // block_bytes // 2)) * block_bytes
        size = min(left, buffer.size - start)
        yield buffer[start : start + size]
        left -= size


def metadata(label: str, shape: Shape, layers: int) -> dict[str, Any]:
    """GGUF's key-values: the shape, and a vocabulary in SentencePiece's style of its size.

    That has three control tokens, the bytes, a space mark, the digits and numbers.
    """
    words = ["▁", *"0123456789", *(f"▁{i}" for i in range(shape.vocab))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words][: shape.vocab]
    normal, unknown, control, byte = 1, 2, 3, 6
    kinds = [unknown, control, control] + [byte] * 256
    kinds += [normal] * (shape.vocab - len(kinds))
    norm = "layer_norm" if shape.architecture in ("falcon", "opt") else "layer_norm_rms"
    sizes: dict[str, int | float] = {
        "block_count": layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "vocab_size": shape.vocab,
        f"attention.{norm}_epsilon": shape.epsilon,
    }
    if shape.architecture != "opt":
        sizes |= {"rope.freq_base": shape.rope_base, "rope.dimension_count": shape.head_dim}
    return {
        "general.architecture": shape.architecture,
        "general.name": f"synthetic random weights, {label}",
        **{f"{shape.architecture}.{key}": value for key, value in sizes.items()},
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(shape.vocab, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def write(path: Path, name: str, kind: str, layers: int | None = None, seed: int = 0) -> int:
    """Write `path`, whole or not at all, and return its size in bytes; `HotsetError` as `write_gguf`.

    `name` and `kind` are keys of SHAPES and TYPES; `layers` replaces the shape's own count.
    """
    shape = SHAPES[name]
    depth = layers or shape.layers
    tensors = plan(shape, depth, TYPES[kind])
    rng = np.random.default_rng(seed)
    buffers: dict[tuple[Q, int], NDArray[np.uint8]] = {}
    new = [NewTensor(t.name, t.shape, t.type, partial(tensor_chunks, t, buffers, rng)) for t in tensors]
    return write_gguf(path, metadata(name, shape, depth), new)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a GGUF file of a real shape with random weights.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--type", choices=list(TYPES), default="q4_0")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the real model")
    parser.add_argument("--out", type=Path, help="default: <shape>-<TYPE>.gguf here")
    args = parser.parse_args()
    if args.layers is not None and args.layers < 1:
        parser.error(f"--layers: expected at least 1, found {args.layers}")
    out = args.out or Path(f"{args.shape}-{args.type.upper()}.gguf")
    try:
        size = write(out, args.shape, args.type, args.layers)
    except HotsetError as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {size / 1e9:.2f} GB, synthetic random weights, {args.shape} {args.type.upper()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
