"""What the planner predicts for the machines of PowerInfer's paper, against what the paper measured.

Machines are files of published and assumed figures that come with Hotset (``hotset plan --machine``). Models
are shapes without weights, whose neurons fire by a clipped power law with the paper's figures for sparsity
and locality. Every speed of Hotset's in the table is predicted; none was measured on such a machine.

    python benchmarks/plan_published.py --json results/plan-published.json
"""

import argparse
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from machine import report, write_json
from numpy.typing import NDArray
from sparse_models import SPREAD, VARIANTS, probabilities

from hotset.core.config import Activation, FFNPlan, LayerConfig, ModelConfig, NormKind, Score, Way
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType
from hotset.placing.machine import find_machine
from hotset.placing.planner import Planner

HERE = Path(__file__).parent
LEFT_TO_OTHERS = 1 << 30
"""Bytes of the GPU's memory that its driver and a desktop are taken to need."""
CONTEXT, PROMPT = 2048, 128


@dataclass(frozen=True)
class Model:
    """A published shape and how its neurons fire."""

    name: str
    config: ModelConfig
    type: TensorType
    density: float
    """1 - sparsity (PowerInfer, SOSP'24)."""
    hot_share: float
    """Share of neurons with 80 % of the activations (the same, figure 5)."""
    rank: int
    """Of the predictor, such that it is 6 to 7 % of the weights (the paper: 4.9 to 8.7 %)."""


def config(
    layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, gated: bool
) -> ModelConfig:
    return ModelConfig(
        architecture="llama" if gated else "falcon",
        vocab_size=vocab,
        context_length=2048,
        hidden_size=hidden,
        ffn_size=ffn,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=hidden // heads,
        layers=(LayerConfig(None),) * layers,
        activation=Activation.RELU,
        gated=gated,
        norm=NormKind.RMS if gated else NormKind.LAYER,
        norm_eps=1e-5,
        parallel=not gated,
    )


MODELS = (
    # Locality is published for OPT-30B (ReLU without a gate), not for Falcon.
    Model("Falcon-40B F16", config(60, 8192, 32768, 128, 8, 65024, False), TensorType.F16, 0.05, 0.26, 1024),
    Model("Llama-2-70B Q4_0", config(80, 8192, 28672, 64, 8, 32000, True), TensorType.Q4_0, 0.18, 0.43, 1536),
)
PCS = ("rtx-4090", "rtx-2080-ti")
PUBLISHED = {
    ("rtx-4090", TensorType.F16): "8.32 on average, 16.06 at most, over models",
    ("rtx-4090", TensorType.Q4_0): "13.20 on average, 29.08 at most, over models",
}
"""PowerInfer's tokens/s; for single models none is published."""
WAYS = {
    "dense": FFNPlan(Way.DENSE),
    "exact": FFNPlan(Way.EXACT),
    "predictor": FFNPlan(Way.PREDICTOR, Score.LOW_RANK),
}


def checkpoint(model: Model, plan: FFNPlan) -> Checkpoint:
    """The model by neuron, its tensors of the right sizes and without contents."""
    c, tensors = model.config, {}

    def add(name: str, rows: int, columns: int, kind: TensorType = model.type) -> None:
        nbytes = rows * columns // kind.block_size * kind.block_bytes
        data = np.broadcast_to(np.zeros(1, np.uint8), (nbytes,))
        tensors[name] = Tensor(name, kind, (rows, columns), data)

    small = model.type is not TensorType.F16
    add("token_embd.weight", c.vocab_size, c.hidden_size, TensorType.Q6_K if small else model.type)
    for i in range(c.n_layers):
        add(f"blk.{i}.attn_q.weight", c.n_heads * c.head_dim, c.hidden_size)
        add(f"blk.{i}.attn_k.weight", c.n_kv_heads * c.head_dim, c.hidden_size)
        add(f"blk.{i}.attn_v.weight", c.n_kv_heads * c.head_dim, c.hidden_size)
        add(f"blk.{i}.attn_output.weight", c.hidden_size, c.n_heads * c.head_dim)
        for part in ("gate", "up", "down_t") if c.gated else ("up", "down_t"):
            add(f"blk.{i}.ffn_{part}.weight", c.ffn_size, c.hidden_size)
        add(f"blk.{i}.fc1.weight", model.rank, c.hidden_size)
        add(f"blk.{i}.fc2.weight", c.ffn_size, model.rank)
    layers = (LayerConfig(None, ffn=plan),) * c.n_layers
    return Checkpoint(Path(model.name), ModelConfig(**{**vars(c), "layers": layers}), tensors)


@lru_cache
def frequency(model: Model) -> NDArray[np.float64]:
    """(L, F): early layers more local than late ones, as in `sparse_models`."""
    c = model.config
    shares = model.hot_share + SPREAD * np.linspace(-1, 1, VARIANTS)
    laws = [probabilities(c.ffn_size, model.density, share) for share in shares]
    return np.stack([laws[i * VARIANTS // c.n_layers] for i in range(c.n_layers)])


def predict(model: Model, pc: str, way: str) -> dict[str, Any]:
    """One row of the table."""
    machine = find_machine(pc)
    assert machine.gpu
    budget = int(machine.gpu.vram_bytes) - LEFT_TO_OTHERS
    planner = Planner(
        checkpoint(model, WAYS[way]), machine, context=CONTEXT, prompt=PROMPT, frequency=frequency(model)
    )
    plan = planner.plan(budget)
    host = sum(use.host_bytes for use in plan.layers)
    return {
        "model": model.name,
        "machine": pc,
        "way": way,
        "budget_bytes": budget,
        "device_bytes": plan.device_bytes,
        "host_bytes": host,
        "fits_main_memory": host < machine.cpu.ram_bytes,
        "hot_share": sum(layer.hot for layer in plan.placement.layers)
        / model.config.ffn_size
        / model.config.n_layers,
        "layers_with_attention_on_gpu": sum(layer.attention for layer in plan.placement.layers),
        "predicted_tokens_per_second": plan.tokens_per_second,
        "ms": plan.ms,
        "lower_bound_ms": plan.bound_ms,
        "predicted_first_token_ms": plan.first_token_ms,
        "cold_prefill": plan.cold_prefill.value,
        "published_tokens_per_second": PUBLISHED.get((pc, model.type), "not published"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Predict speeds on the machines of PowerInfer's paper.")
    parser.add_argument("--json", type=Path, help="write the figures with versions here")
    args = parser.parse_args()
    rows = [predict(model, pc, way) for model in MODELS for pc in PCS for way in WAYS]
    print("| model | PC | way | hot neurons | **predicted** tokens/s | PowerInfer, published tokens/s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        speed = f"{row['predicted_tokens_per_second']:.1f}"
        if not row["fits_main_memory"]:
            speed = f"– (needs {row['host_bytes'] / 1e9:.0f} GB of main memory)"
        print(
            f"| {row['model']} | {row['machine']} | {row['way']} | {row['hot_share']:.1%} | {speed} | "
            f"{row['published_tokens_per_second']} |"
        )
    if args.json:
        write_json(args.json, report("plan_published", vars(args), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
