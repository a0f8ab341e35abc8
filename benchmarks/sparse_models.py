"""Write a GGUF file of a real model's shape whose neurons fire by a power law: sparse speed without download.

Weights are synthetic, and `general.name` says so. Which neurons fire is nevertheless decided by the real
gate, token by token, so that exact, predictor and dense decoding run the same file:

- Token embeddings lie in a subspace of as many dimensions as the predictor is wide, and share one direction u
  there. The layers add little to them, in all directions, as attention and down are scaled low.
- Neuron j's gate is random within the subspace, minus t_j u: what all tokens share pushes it below zero, so
  that it fires with the probability p_j that t_j was chosen for.
- The p_j follow a clipped power law with the mean density asked for. Its exponent is such that 80 % of the
  activations belong to the share of neurons that PowerInfer's paper found: 26 % (OPT-30B) without a gate,
  43 % (Llama-2-70B ReGLU) with one, a little less in early layers and more in late ones.
- The predictor is the gate's projection onto the subspace, 4-bit like the rest; it misses what layers add.

    python benchmarks/sparse_models.py llama-2-7b --type q4_0 --out llama-2-7b-reglu-Q4_0.gguf
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from synthetic import (
    SHAPES,
    TYPES,
    Buffers,
    Q,
    Shape,
    TensorPlan,
    metadata,
    plan,
    tensor_chunks,
)

from hotset.backends.blocks import dequantise, round_to_nearest
from hotset.core.config import DEFAULT_KEPT
from hotset.core.errors import HotsetError
from hotset.formats.gguf_writer import NewTensor, write_gguf

F32 = NDArray[np.float32]

ACTIVATIONS = ("relu", "relu2")
HOT_SHARE = {True: 0.43, False: 0.26}
"""Share of neurons with 80 % of the activations, by whether there is a gate (SOSP'24, figure 5)."""
SPREAD = 0.06
"""Early layers have so much less, late ones so much more."""
VARIANTS = 4
"""Power laws in a model; neighbouring layers share one, and with it their gate."""
WIDTH = 512
"""Predictor's width, a power of two: 5.7 % of a 7B layer's FFN."""
RECALL = 0.98
LOW = 0.03
"""Scale of what attention and FFN add, relative to random matrices that keep a vector's length."""


@dataclass(frozen=True)
class SparseShape:
    """A model's shape, whether its FFN is gated, and how it is labelled."""

    shape: Shape
    activation: str

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate (Llama)."""
        return self.shape.architecture == "llama"


def probabilities(size: int, density: float, hot_share: float) -> NDArray[np.float64]:
    """How often each neuron fires, hottest first: `density` on average, 80 % of it in `hot_share` of them."""
    ranks = (np.arange(size) + 1.0) / size

    def law(exponent: float) -> NDArray[np.float64]:
        low, high = 1e-6, 1e6
        for _ in range(100):  # the factor that gives the mean, the hottest being clipped
            middle = (low * high) ** 0.5
            p = np.minimum(middle * ranks**-exponent, 0.95)
            low, high = (middle, high) if p.mean() < density else (low, middle)
        return p

    low, high = 0.0, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        cumulated = np.cumsum(law(middle)) / (size * density)
        low, high = (middle, high) if np.searchsorted(cumulated, 0.8) / size > hot_share else (low, middle)
    return law(low)


@dataclass(frozen=True)
class Space:
    """The subspace that tokens lie in: an orthonormal basis (r, D) whose last row is u."""

    basis: F32

    def embeddings(self, count: int, rng: np.random.Generator) -> F32:
        """Token vectors (count, D) of norm sqrt(D), half of whose square lies along u."""
        hidden = self.basis.shape[1]
        inner = rng.standard_normal((count, len(self.basis)), dtype=np.float32)
        inner[:, -1] = 0
        inner *= (hidden / 2) ** 0.5 / np.linalg.norm(inner, axis=1, keepdims=True)
        inner[:, -1] = (hidden / 2) ** 0.5
        return inner @ self.basis

    def gate(self, p: NDArray[np.float64], rng: np.random.Generator) -> F32:
        """Rows (F, r), in the basis, of neurons whose product with a token is positive with probability p."""
        hidden = self.basis.shape[1]
        rows = rng.standard_normal((len(p), len(self.basis)), dtype=np.float32) * (2 / hidden) ** 0.5
        rows[:, -1] = [NormalDist().inv_cdf(q) * (2 / hidden) ** 0.5 for q in p]
        return rows


def make_space(hidden: int, rng: np.random.Generator) -> Space:
    """A random subspace whose u has mean zero, so that a layer norm keeps it."""
    vectors = rng.standard_normal((hidden, WIDTH), dtype=np.float32)
    vectors[:, 0] -= vectors[:, 0].mean()
    basis = np.linalg.qr(vectors)[0].T
    return Space(np.ascontiguousarray(np.roll(basis, -1, axis=0), np.float32))


@dataclass(frozen=True)
class Gate:
    """One power law's gate (F, D) and predictor, as a file's bytes, and the predictor's cut-off."""

    gate: NDArray[np.uint8]
    fc1: NDArray[np.uint8]
    fc2: NDArray[np.uint8]
    cutoff: float


def make_gate(space: Space, p: NDArray[np.float64], kind: Q, rng: np.random.Generator) -> Gate:
    """Quantise a gate and its predictor; the cut-off first keeps RECALL of what fires on random tokens."""
    inner = space.gate(p, rng)
    gate = inner @ space.basis
    # A rotation (Hadamard's) spreads u over all columns, as 4 bits would lose it beside the rest.
    rotation = np.ones((1, 1), np.float32)
    while len(rotation) < WIDTH:
        rotation = np.kron(rotation, np.float32([[1, 1], [1, -1]])) / np.float32(2**0.5)
    rotation *= rng.choice(np.float32([-1, 1]), WIDTH)
    fc1, fc2 = rotation @ space.basis, inner @ rotation.T
    tokens = space.embeddings(128, rng)
    tokens += 0.1 * rng.standard_normal(tokens.shape, dtype=np.float32)  # about what layers add
    fires = tokens @ gate.T > 0
    low, last = (round_to_nearest(n, w, Q.Q4_0) for n, w in (("fc1", fc1), ("fc2", fc2)))
    scores = dequantise(last) @ (dequantise(low) @ tokens.T)
    cutoff = float(np.quantile(scores.T[fires], 1 - RECALL))
    return Gate(_blocks(gate, kind), low.data, last.data, cutoff)


def _blocks(values: F32, kind: Q) -> NDArray[np.uint8]:
    if kind is Q.F16:
        return values.astype("<f2").reshape(-1).view(np.uint8)
    return round_to_nearest("weights", values, kind).data


def by_neuron(tensors: list[TensorPlan], sparse: SparseShape, kind: Q) -> list[TensorPlan]:
    """The plain file's tensors with down stored by neuron and predictors, all matrices of FFNs as `kind`."""
    shape = sparse.shape
    found = []
    for tensor in tensors:
        if tensor.name.endswith("ffn_down.weight"):
            block = tensor.name.removesuffix("ffn_down.weight")
            found.append(TensorPlan(f"{block}ffn_down_t.weight", (shape.ffn, shape.hidden), kind))
            found.append(TensorPlan(f"{block}fc1.weight", (WIDTH, shape.hidden), Q.Q4_0))
            found.append(TensorPlan(f"{block}fc2.weight", (shape.ffn, WIDTH), Q.Q4_0))
        else:
            found.append(tensor)
    return found


def scaled_chunks(
    tensor: TensorPlan, buffers: Buffers, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Random blocks as `tensor_chunks` gives them, their numbers LOW times as large.

    Blocks' signs are random too: 4-bit codes from -8 to 7 have a mean, which would amplify one direction from
    layer to layer.
    """
    for chunk in tensor_chunks(tensor, buffers, rng):
        if tensor.type is Q.F16:
            yield (chunk.view("<f2") * np.float16(LOW)).view(np.uint8)
            continue
        blocks = chunk.reshape(-1, tensor.type.block_bytes).copy()
        scales = 4 if tensor.type is Q.Q4_1 else 2  # scale, and minimum
        factor = rng.choice(np.float16([-LOW, LOW]), (len(blocks), 1))
        blocks[:, :scales] = (blocks[:, :scales].copy().view("<f2") * factor).view(np.uint8)
        yield blocks.reshape(-1)


def write(
    path: Path, name: str, kind_name: str, *, density: float, activation: str, layers: int | None, seed: int
) -> int:
    """Write the model, whole or not at all; its size in bytes. `HotsetError` as `write_gguf`."""
    kind = TYPES[kind_name]
    sparse = SparseShape(SHAPES[name], activation)
    shape, depth = sparse.shape, layers or SHAPES[name].layers
    rng = np.random.default_rng(seed)
    space = make_space(shape.hidden, rng)
    shares = HOT_SHARE[sparse.gated] + np.linspace(-SPREAD, SPREAD, VARIANTS)
    gates = [make_gate(space, probabilities(shape.ffn, density, s), kind, rng) for s in shares]
    variant = [i * VARIANTS // depth for i in range(depth)]
    first = "ffn_gate.weight" if sparse.gated else "ffn_up.weight"

    keys = metadata(f"{name}, {activation}, neurons fire by a power law", shape, depth) | {
        "hotset.activation": activation,
        "hotset.ffn.way": ["predictor"] * depth,
        "hotset.ffn.score": ["low_rank"] * depth,
        "hotset.ffn.cutoff": np.array([gates[v].cutoff for v in variant], np.float32),
        "hotset.ffn.kept": np.full(depth, DEFAULT_KEPT, np.float32),
    }

    def fixed(values: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        yield values

    def embedding(tensor: TensorPlan) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, shape.vocab, 4096):
            rows = space.embeddings(min(4096, shape.vocab - start), rng)
            yield _blocks(rows, tensor.type)

    # What layers add has its own numbers, to be independent of what they read.
    buffers: Buffers = {}
    low_buffers: Buffers = {}
    new = []
    for tensor in by_neuron(plan(shape, depth, kind), sparse, kind):
        part = tensor.name.split(".", 2)[-1]
        gate = gates[variant[int(tensor.name.split(".")[1])]] if tensor.name.startswith("blk.") else None
        if tensor.name == "token_embd.weight":
            # Tied to the output it has Q6_K, for which there is no rounding here.
            type = Q.Q8_0 if tensor.type is Q.Q6_K else tensor.type
            tensor = TensorPlan(tensor.name, tensor.shape, type)  # noqa: PLW2901
            chunks = partial(embedding, tensor)
        elif gate and part == first:
            chunks = partial(fixed, gate.gate)
        elif gate and part in ("fc1.weight", "fc2.weight"):
            chunks = partial(fixed, gate.fc1 if part[2] == "1" else gate.fc2)
        elif part in ("attn_output.weight", "ffn_down_t.weight"):
            chunks = partial(scaled_chunks, tensor, low_buffers, rng)
        else:
            chunks = partial(tensor_chunks, tensor, buffers, rng)
        new.append(NewTensor(tensor.name, tensor.shape, tensor.type, chunks))
    return write_gguf(path, keys, new)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a synthetic GGUF whose neurons fire by a power law.")
    parser.add_argument(
        "shape", choices=[n for n, s in SHAPES.items() if s.architecture in ("llama", "opt", "falcon")]
    )
    parser.add_argument("--type", choices=["q4_0", "q4_1", "q8_0", "f16"], default="q4_0")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--density", type=float, default=0.1, help="share of neurons that fire for a token")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the real model")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not 0 < args.density < 0.9:
        parser.error(f"--density: expected a number between 0 and 0.9, found {args.density}")
    try:
        size = write(
            args.out,
            args.shape,
            args.type,
            density=args.density,
            activation=args.activation,
            layers=args.layers,
            seed=0,
        )
    except HotsetError as error:
        print(f"sparse_models: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {size / 1e9:.2f} GB, synthetic weights, {args.shape} {args.type.upper()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
