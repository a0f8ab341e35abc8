"""Experts whose neurons fire at a given rate: exact skipping against computing all, without a download.

Weights are synthetic. Tokens and gates are those of `sparse_models`: token embeddings share a direction, and
each neuron's gate is pushed along it so far that the neuron fires with the probability asked for; which ones
do is decided by the gate, token by token. The router does not see that direction: experts are selected about
alike. The share of neurons that fire inside the experts of real models is not known here: `hotset profile`
measures it.

`smallthinker-21b` and `nemotron-3-nano-30b-a3b` write a file stored by neuron, whose vocabulary is cut with
its layers, so that the output keeps its share of a token's bytes; time it with `hotset bench --ffn exact` and
`--ffn dense`, or with `sparse.py --way exact --way dense` beside a plain file of `synthetic.py`. `nemotron-3`
times one layer of experts without a gate, of that model's sizes and half as many, in both ways:

    python benchmarks/sparse_mixtures.py smallthinker-21b --density 0.1 --layers 6 --out st-10.gguf
    python benchmarks/sparse_mixtures.py nemotron-3 --density 0.1
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from sparse_models import VARIANTS, Space, make_space, scaled_chunks
from synthetic import Buffers, Q, Shape, TensorPlan, metadata, plan, tensor_chunks
from synthetic_families import FAMILIES, Family

from hotset.backends.blocks import round_to_nearest
from hotset.backends.contract import ExpertsSpec, Linear, Norm, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, ExpertsConfig, FFNPlan, Gating, NormKind, Way
from hotset.core.errors import HotsetError
from hotset.formats.ffn_plan import plan_keys
from hotset.formats.gguf_writer import NewTensor, write_gguf
from hotset.formats.tensor import Tensor, tensor_from_array

SMALLTHINKER = Shape(
    *("smallthinker", 151936, 32768, 2560, 768, 52, 28, 4),
    rope_base=1.5e6,
    epsilon=1e-6,
    key_length=128,
    experts=64,
    experts_used=6,
)
NEMOTRON = ExpertsConfig(count=64, used=6, size=1856, gating=Gating.SIGMOID, scale=2.5)
NEMOTRON_HIDDEN = 2688


def gates(space: Space, size: int, density: float, rng: np.random.Generator) -> list[Tensor]:
    """A few matrices (F, D) in 4 bits; experts share them, as their bytes."""
    p = np.full(size, density)
    matrices = (space.gate(p, rng) @ space.basis for _ in range(VARIANTS))
    return [round_to_nearest("gate", matrix, Q.Q4_0) for matrix in matrices]


def router(space: Space, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows (E, D) in the tokens' subspace, without the direction that all share."""
    inner = rng.standard_normal((count, len(space.basis)), dtype=np.float32) * np.float32(0.05)
    inner[:, -1] = 0
    return inner @ space.basis


@dataclass(frozen=True)
class Mixture:
    """A model of experts whose neurons may be zero, and the matrix that says which are."""

    shape: Shape | Family
    size: int
    gate: str


NANO = FAMILIES["nemotron-3-nano-30b-a3b"]
MIXTURES = {
    "smallthinker-21b": Mixture(SMALLTHINKER, SMALLTHINKER.ffn, "ffn_gate_exps"),
    "nemotron-3-nano-30b-a3b": Mixture(NANO, NANO.experts_size, "ffn_up_exps"),
}
ADDING = ("ffn_down_t_exps", "ffn_down_shexp", "attn_output", "ssm_out")
"""Matrices whose results are added to the hidden vectors."""


def write(path: Path, name: str, density: float, layers: int, seed: int = 0) -> int:
    """Write one of `MIXTURES`, whole or not at all; its size in bytes. `HotsetError` as `write_gguf`."""
    mixture = MIXTURES[name]
    vocab = max(512, round(mixture.shape.vocab * layers / mixture.shape.layers))
    shape = mixture.shape if isinstance(mixture.shape, Family) else replace(mixture.shape, vocab=vocab)
    rng = np.random.default_rng(seed)
    space = make_space(shape.hidden, rng)
    own = gates(space, mixture.size, density, rng)
    tensors = plan(shape, layers, Q.Q4_0)
    mixtures = {t.name.split(".")[1] for t in tensors if t.name.endswith("ffn_gate_inp.weight")}
    plans = [FFNPlan(Way.EXACT) if str(i) in mixtures else None for i in range(layers)]
    label = f"{name}, {density:.0%} of each expert's neurons fire"
    keys = metadata(label, shape, layers) | plan_keys(plans)
    keys[f"{shape.architecture}.expert_gating_func"] = 2

    def embedding(tensor: TensorPlan) -> Iterator[NDArray[np.uint8]]:
        yield round_to_nearest(tensor.name, space.embeddings(tensor.shape[0], rng), tensor.type).data

    def routers(tensor: TensorPlan) -> Iterator[NDArray[np.uint8]]:
        yield router(space, shape.experts, rng).reshape(-1).view(np.uint8)

    def experts_gates(tensor: TensorPlan) -> Iterator[NDArray[np.uint8]]:
        for expert in range(shape.experts):
            yield own[expert % VARIANTS].data

    # What layers add has its own numbers, to be independent of what they read.
    buffers: Buffers = {}
    low_buffers: Buffers = {}
    random, low = partial(tensor_chunks, buffers=buffers), partial(scaled_chunks, buffers=low_buffers)
    makers = {
        "token_embd": embedding,
        "ffn_gate_inp": routers,
        mixture.gate: experts_gates,
        **dict.fromkeys(ADDING, partial(low, rng=rng)),
    }
    new = []
    for tensor in tensors:
        if tensor.name.endswith("ffn_down_exps.weight"):
            by_neuron = tensor.name.replace("ffn_down_exps", "ffn_down_t_exps")
            tensor = TensorPlan(by_neuron, (shape.experts, mixture.size, shape.hidden), tensor.type)  # noqa: PLW2901
        make = makers.get(tensor.name.split(".")[-2], partial(random, rng=rng))
        new.append(NewTensor(tensor.name, tensor.shape, tensor.type, partial(make, tensor)))
    return write_gguf(path, keys, new)


def nemotron(density: float, seed: int = 0) -> tuple[ExpertsSpec, Space]:
    """A layer of experts without a gate, stored by neuron in 4 bits, and where its tokens lie."""
    rng = np.random.default_rng(seed)
    shape, hidden = NEMOTRON, NEMOTRON_HIDDEN
    space = make_space(hidden, rng)
    up = gates(space, shape.size, density, rng)
    stacked = (shape.count, shape.size, hidden)
    ups = np.concatenate([up[expert % VARIANTS].data for expert in range(shape.count)])
    downs = TensorPlan("down", stacked, Q.Q4_0)
    down = np.concatenate(list(tensor_chunks(downs, {}, rng)))
    return ExpertsSpec(
        norm=Norm(NormKind.RMS, 1e-5, np.ones(hidden, np.float32)),
        router=Linear(tensor_from_array("router", router(space, shape.count, rng))),
        gate=None,
        up=Linear(Tensor("up", Q.Q4_0, stacked, ups)),
        down=Linear(Tensor("down", Q.Q4_0, stacked, down)),
        activation=Activation.RELU2,
        shape=shape,
        plan=FFNPlan(Way.EXACT),
    ), space


def time_layer(density: float, threads: int | None, pairs: int, tokens: int = 200) -> None:
    """Print the layer's time for a token in both ways, pair by pair, and the ratio of the medians."""
    spec, space = nemotron(density)
    backend = CpuBackend(threads)
    ways = {way: backend.experts(replace(spec, plan=FFNPlan(way))) for way in (Way.DENSE, Way.EXACT)}
    x = space.embeddings(tokens, np.random.default_rng(9))
    state = StateShape(1, 1, 32, (0.0,))
    sequences = {way: backend.sequence(state, 8, "f16") for way in ways}

    def run(way: Way) -> float:
        layer, out = ways[way], np.zeros_like(x[:1])
        start = time.perf_counter()
        for row in range(tokens):
            batch = Batch(np.zeros(1, np.int32), (Span(sequences[way], 1),))
            layer.forward(x[row : row + 1], out, backend.view(batch))
        return (time.perf_counter() - start) / tokens * 1e6

    for way in ways:
        run(way)  # packs the experts
    times: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(pairs):
        for way, found in times.items():
            found.append(run(way))
        print(f"dense {times[Way.DENSE][-1]:.0f} us, exact {times[Way.EXACT][-1]:.0f} us")
    chooser = sequences[Way.EXACT].choosers[0]
    assert chooser
    read = chooser.work.read / chooser.work.rows / spec.shape.used / spec.shape.size
    dense, exact = (median(found) for found in times.values())
    print(f"nemotron-3 layer, {read:.1%} of the neurons read: exact {dense / exact:.2f} times dense")


def main() -> int:
    parser = argparse.ArgumentParser(description="Exact skipping inside experts, on synthetic weights.")
    parser.add_argument("shape", choices=[*MIXTURES, "nemotron-3"])
    parser.add_argument("--density", type=float, default=0.1, help="share of neurons that fire for a token")
    parser.add_argument("--layers", type=int, default=6, help="of the 52 that these models have")
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    if not 0 < args.density < 0.9:
        parser.error(f"--density: expected a number between 0 and 0.9, found {args.density}")
    try:
        if args.shape == "nemotron-3":
            time_layer(args.density, args.threads, args.pairs)
            return 0
        if not args.out:
            parser.error("--out: name the file to write")
        size = write(args.out, args.shape, args.density, args.layers)
    except HotsetError as error:
        print(f"sparse_mixtures: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {size / 1e9:.2f} GB, synthetic weights, {args.shape} Q4_0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
