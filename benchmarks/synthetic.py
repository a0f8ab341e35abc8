"""Write a GGUF file of a real model's shape with random weights, in seconds: speed tests without a download.

The blocks are random but valid and scaled by 1/sqrt(columns), so activations stay finite; what such a model
says means nothing, and `general.name` says so. A byte-level SentencePiece vocabulary is padded to the shape's
size. Types follow `llama-quantize`: the output matrix of a quantised file is Q6_K, a K-quant gives way to
the next legacy type where the columns are no multiple of 256, and MXFP4 is for experts alone, beside Q8_0.

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
from shapes import SHAPES, Shape
from synthetic_families import FAMILIES, Family

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


OPT_POSITION_OFFSET = 2
DELTA_DIM, DELTA_KERNEL = 128, 4
ROUTERS = {"uniform": 1.0, "skewed": 4.0}
"""How experts are selected: all alike, or a few most of the time (see `TensorPlan.skew`)."""


Buffers = dict[tuple[Q, int, float | None], NDArray[np.uint8]]
"""Random blocks by type, columns and deviation."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to write; ``fill`` is None for random values."""

    name: str
    shape: tuple[int, ...]
    type: Q
    fill: float | None = None
    skew: float = 1.0
    """Random rows are from this many times the usual length down to as much less, in any order."""
    deviation: float | None = None
    """Of the random numbers; None: 1/sqrt(columns)."""


def matrix_type(wanted: Q, columns: int, *, output: bool = False, experts: bool = False) -> Q:
    """The type that a matrix gets in a file of the `wanted` type (see the module's docstring)."""
    if wanted is Q.MXFP4 and not experts:
        return Q.Q8_0
    if output and wanted not in (Q.Q8_0, Q.F16, Q.BF16, Q.F32):
        wanted = Q.Q6_K
    return FALLBACK.get(wanted, wanted) if columns % wanted.block_size else wanted


def _ffn(size: int, hidden: int) -> dict[str, tuple[int, int]]:
    return {"gate": (size, hidden), "up": (size, hidden), "down": (hidden, size)}


class _Planner:
    """A model's tensors in file order."""

    def __init__(self, hidden: int, wanted: Q, skew: float, *, layer_norm: bool = False) -> None:
        self.hidden = hidden
        self.skew = skew
        self.wanted = wanted
        self.tensors: list[TensorPlan] = []
        self.layer_norm = layer_norm

    def embedding(self, vocab: int, *, tied: bool) -> None:
        """Of a size that layers add little to, so that tokens differ and select experts of their own."""
        kind = matrix_type(self.wanted, self.hidden, output=tied)
        self.tensors.append(TensorPlan("token_embd.weight", (vocab, self.hidden), kind, deviation=16.0))

    def matrix(self, name: str, rows: int, columns: int, *, bias: bool = False, output: bool = False) -> None:
        kind = matrix_type(self.wanted, columns, output=output)
        self.tensors.append(TensorPlan(f"{name}.weight", (rows, columns), kind))
        if bias:
            self.vector(f"{name}.bias", rows, fill=0.0)

    def stack(self, name: str, count: int, rows: int, columns: int) -> None:
        kind = matrix_type(self.wanted, columns)
        self.tensors.append(TensorPlan(f"{name}.weight", (count, rows, columns), kind))

    def vector(self, name: str, *sizes: int, fill: float | None = 1.0) -> None:
        self.tensors.append(TensorPlan(name, sizes, Q.F32, fill))

    def norm(self, name: str) -> None:
        self.vector(f"{name}.weight", self.hidden)
        if self.layer_norm:
            self.vector(f"{name}.bias", self.hidden, fill=0.0)

    def mixture(self, block: str, count: int, size: int, parts: tuple[str, ...]) -> None:
        router = TensorPlan(f"{block}.ffn_gate_inp.weight", (count, self.hidden), Q.F32, skew=self.skew)
        self.tensors.append(router)
        for part in parts:
            matrix = _ffn(size, self.hidden)[part]
            kind = matrix_type(self.wanted, matrix[1], experts=True)
            self.tensors.append(TensorPlan(f"{block}.ffn_{part}_exps.weight", (count, *matrix), kind))


class _ShapePlanner(_Planner):
    """The same of a model of which all layers are alike, or almost."""

    def __init__(self, shape: Shape, wanted: Q, skew: float) -> None:
        super().__init__(shape.hidden, wanted, skew, layer_norm=shape.architecture in ("falcon", "opt"))
        self.shape = shape

    def layer(self, i: int) -> None:
        shape, block = self.shape, f"blk.{i}"
        opt = shape.architecture == "opt"
        late = shape.delta_heads or shape.architecture == "gpt-oss"
        self.norm(f"{block}.attn_norm")
        if shape.architecture == "falcon":
            if shape.kv_heads > 1:
                self.norm(f"{block}.attn_norm_2")
            self.matrix(f"{block}.attn_qkv", shape.hidden + 2 * shape.kv_heads * shape.head_dim, shape.hidden)
            self.matrix(f"{block}.attn_output", shape.hidden, shape.hidden)
        elif shape.recurrent(i):
            self.delta_net(block)
        else:
            self.attention(block)
        if late:
            self.norm(f"{block}.post_attention_norm")
        elif shape.architecture != "falcon":
            self.norm(f"{block}.ffn_norm")
        if shape.experts:
            self.experts(block)
            return
        if not self.layer_norm:
            self.matrix(f"{block}.ffn_gate", shape.ffn, shape.hidden)
        self.matrix(f"{block}.ffn_up", shape.ffn, shape.hidden, bias=opt)
        self.matrix(f"{block}.ffn_down", shape.hidden, shape.ffn, bias=opt)

    def experts(self, block: str) -> None:
        shape, hidden = self.shape, self.hidden
        self.mixture(block, shape.experts, shape.ffn, ("gate", "up", "down"))
        if shape.architecture == "gpt-oss":
            self.vector(f"{block}.ffn_gate_inp.bias", shape.experts, fill=0.0)
            for name, (rows, _) in _ffn(shape.ffn, hidden).items():
                self.vector(f"{block}.ffn_{name}_exps.bias", shape.experts, rows, fill=0.0)
        if shape.shared:
            self.vector(f"{block}.ffn_gate_inp_shexp.weight", hidden, fill=None)
            for name, (rows, columns) in _ffn(shape.shared, hidden).items():
                self.matrix(f"{block}.ffn_{name}_shexp", rows, columns)

    def attention(self, block: str) -> None:
        shape = self.shape
        gated = bool(shape.delta_heads)
        queries, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        bias = shape.architecture in ("opt", "gpt-oss")
        qkv_bias = bias or shape.architecture == "qwen2"
        self.matrix(f"{block}.attn_q", (1 + gated) * queries, shape.hidden, bias=qkv_bias)
        self.matrix(f"{block}.attn_k", kv, shape.hidden, bias=qkv_bias)
        self.matrix(f"{block}.attn_v", kv, shape.hidden, bias=qkv_bias)
        if gated or shape.architecture == "qwen3moe":
            self.vector(f"{block}.attn_q_norm.weight", shape.head_dim)
            self.vector(f"{block}.attn_k_norm.weight", shape.head_dim)
        self.matrix(f"{block}.attn_output", shape.hidden, queries, bias=bias)
        if shape.architecture == "gpt-oss":
            self.vector(f"{block}.attn_sinks.weight", shape.heads, fill=0.0)

    def delta_net(self, block: str) -> None:
        keys, heads = self.shape.delta_heads or (0, 0)
        hidden, channels = self.shape.hidden, (2 * keys + heads) * DELTA_DIM
        self.matrix(f"{block}.attn_qkv", channels, hidden)
        self.matrix(f"{block}.attn_gate", heads * DELTA_DIM, hidden)
        self.matrix(f"{block}.ssm_beta", heads, hidden)
        self.matrix(f"{block}.ssm_alpha", heads, hidden)
        self.vector(f"{block}.ssm_conv1d.weight", channels, DELTA_KERNEL, fill=None)
        self.vector(f"{block}.ssm_dt.bias", heads)
        self.vector(f"{block}.ssm_a", heads, fill=-0.1)
        self.vector(f"{block}.ssm_norm.weight", DELTA_DIM)
        self.matrix(f"{block}.ssm_out", hidden, heads * DELTA_DIM)


def plan(shape: Shape | Family, layers: int, wanted: Q, router: str = "uniform") -> list[TensorPlan]:
    """Every tensor of the model, in file order; `router` is a key of ROUTERS."""
    if isinstance(shape, Family):
        return _family_plan(shape, layers, _Planner(shape.hidden, wanted, ROUTERS[router]))
    planner = _ShapePlanner(shape, wanted, ROUTERS[router])
    planner.embedding(shape.vocab, tied=shape.tied)
    if shape.architecture == "opt":
        planner.vector("position_embd.weight", shape.context + OPT_POSITION_OFFSET, shape.hidden, fill=None)
    for i in range(layers):
        planner.layer(i)
    planner.norm("output_norm")
    if not shape.tied:
        planner.matrix("output", shape.vocab, shape.hidden, output=True)
    return planner.tensors


def _family_plan(family: Family, layers: int, planner: _Planner) -> list[TensorPlan]:
    vocab = family.cut_vocab(layers)
    planner.embedding(vocab, tied=family.tied)
    family.before(planner, layers)
    for i in range(layers):
        family.layer(planner, i)
    planner.norm(family.output_norm)
    if not family.tied:
        planner.matrix("output", vocab, family.hidden, output=True)
    return planner.tensors


def random_blocks(
    kind: Q, columns: int, count: int, rng: np.random.Generator, deviation: float | None = None
) -> NDArray[np.uint8]:
    """`count` random valid blocks (count, block bytes); their numbers deviate by about 1/sqrt(columns).

    Or by `deviation`. Block layouts: ggml's `ggml-common.h`. Quants are uniform bytes; only scales and
    offsets are chosen.
    """
    deviation = deviation or columns**-0.5
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
    tensor: TensorPlan, buffers: Buffers, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes, piece by piece, from one random buffer a type and width, entered anywhere."""
    if tensor.fill is not None:
        yield np.full(tensor.shape, tensor.fill, "<f4").view(np.uint8)
        return
    columns = tensor.shape[-1]
    if tensor.skew != 1:
        lengths = np.geomspace(tensor.skew, 1 / tensor.skew, tensor.shape[0]) * columns**-0.5
        rows = rng.standard_normal(tensor.shape) * rng.permutation(lengths)[:, None]
        yield rows.astype("<f4").reshape(-1).view(np.uint8)
        return
    block_bytes = tensor.type.block_bytes
    key = (tensor.type, columns, tensor.deviation)
    if key not in buffers:
        count = BUFFER_BYTES // block_bytes
        buffers[key] = random_blocks(tensor.type, columns, count, rng, tensor.deviation).reshape(-1)
    buffer = buffers[key]
    left = prod(tensor.shape) // tensor.type.block_size * block_bytes
    while left:
        start = int(rng.integers(0, BUFFER_BYTES // block_bytes // 2)) * block_bytes
        size = min(left, buffer.size - start)
        yield buffer[start : start + size]
        left -= size


def metadata(label: str, shape: Shape | Family, layers: int) -> dict[str, Any]:
    """GGUF's key-values: the shape, and a vocabulary of its size."""
    family = isinstance(shape, Family)
    sizes = shape.keys(layers) if family else _sizes(shape, layers)
    return {
        "general.architecture": shape.architecture,
        "general.name": f"synthetic random weights, {label}",
        **{f"{shape.architecture}.{key}": value for key, value in sizes.items()},
        **_vocabulary(shape.cut_vocab(layers) if family else shape.vocab, shape.architecture),
    }


def _vocabulary(size: int, architecture: str) -> dict[str, Any]:
    """Three control tokens, the bytes, a space mark, the digits and numbers, in SentencePiece's style."""
    words = ["▁", *"0123456789", *(f"▁{i}" for i in range(size))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words][:size]
    normal, unknown, control, byte = 1, 2, 3, 6
    kinds = [unknown, control, control] + [byte] * 256
    kinds += [normal] * (size - len(kinds))
    # Gemma 4's is made of merges.
    merges = {"tokenizer.ggml.merges": [f"▁ {digit}" for digit in range(10)]}
    return {
        "tokenizer.ggml.model": "gemma4" if architecture == "gemma4" else "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(size, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **(merges if architecture == "gemma4" else {}),
    }


def _sizes(shape: Shape, layers: int) -> dict[str, Any]:
    norm = "layer_norm" if shape.architecture in ("falcon", "opt") else "layer_norm_rms"
    sizes: dict[str, Any] = {
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
        rotated = shape.head_dim // 4 if shape.delta_heads else shape.head_dim
        sizes |= {"rope.freq_base": shape.rope_base, "rope.dimension_count": rotated}
    if shape.key_length:
        sizes |= {"attention.key_length": shape.key_length, "attention.value_length": shape.key_length}
    if shape.experts:
        sizes |= {
            "expert_count": shape.experts,
            "expert_used_count": shape.experts_used,
            "expert_feed_forward_length": shape.ffn,
        }
    if shape.shared:
        sizes["expert_shared_feed_forward_length"] = shape.shared
    if shape.window:
        sizes |= {
            "attention.sliding_window": shape.window,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": shape.context // 32,
        }
    if shape.delta_heads:
        sizes |= {
            "ssm.conv_kernel": DELTA_KERNEL,
            "ssm.state_size": DELTA_DIM,
            "ssm.group_count": shape.delta_heads[0],
            "ssm.time_step_rank": shape.delta_heads[1],
            "ssm.inner_size": shape.delta_heads[1] * DELTA_DIM,
            "full_attention_interval": 4,
            "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32),
        }
    return sizes


def write(
    path: Path, name: str, kind: str, layers: int | None = None, seed: int = 0, router: str = "uniform"
) -> int:
    """Write `path`, whole or not at all, and return its size in bytes; `HotsetError` as `write_gguf`.

    `name` is a key of SHAPES or FAMILIES, `kind` of TYPES, `router` of ROUTERS; `layers` replaces the shape's
    count.
    """
    shape = FAMILIES.get(name) or SHAPES[name]
    depth = layers or shape.layers
    tensors = plan(shape, depth, TYPES[kind], router)
    rng = np.random.default_rng(seed)
    buffers: Buffers = {}
    new = [NewTensor(t.name, t.shape, t.type, partial(tensor_chunks, t, buffers, rng)) for t in tensors]
    label = name if router == "uniform" else f"{name}, {router} router"
    return write_gguf(path, metadata(label, shape, depth), new)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a GGUF file of a real shape with random weights.")
    parser.add_argument("shape", choices=sorted({**SHAPES, **FAMILIES}))
    parser.add_argument("--type", choices=list(TYPES), default="q4_0")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the real model")
    parser.add_argument("--router", choices=list(ROUTERS), default="uniform", help="of mixtures of experts")
    parser.add_argument("--out", type=Path, help="default: <shape>-<TYPE>.gguf here")
    args = parser.parse_args()
    if args.layers is not None and args.layers < 1:
        parser.error(f"--layers: expected at least 1, found {args.layers}")
    out = args.out or Path(f"{args.shape}-{args.type.upper()}.gguf")
    try:
        size = write(out, args.shape, args.type, args.layers, router=args.router)
    except HotsetError as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {size / 1e9:.2f} GB, synthetic random weights, {args.shape} {args.type.upper()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
