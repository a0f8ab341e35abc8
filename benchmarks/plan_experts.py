"""What the planner predicts for a mixture of experts on a published machine, against what was measured there.

Published is a community's measurement of Qwen3.5-122B-A10B (Q4_K_L) with llama.cpp and a fork of it on an
RTX 4090 and a Ryzen 9 7950X, context 131,072: all experts on the processor, those of 8 of 48 layers on the
GPU, and the 44 hottest of each layer. The planner predicts these placements twice: with llama.cpp's loss for
each layer that goes through the processor (`PEER_LAYER_US`), and as Hotset would run them, and chooses one.
Shapes have no weights; every speed but the published ones is predicted. Gated delta nets are predicted on the
GPU, where Hotset does not run them yet.

    python benchmarks/plan_experts.py --json results/plan-experts.json
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import report, write_json

from hotset.core.config import (
    Activation,
    DeltaNetConfig,
    ExpertsConfig,
    LayerConfig,
    LayerPlacement,
    ModelConfig,
    NormKind,
    Placement,
)
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType
from hotset.placing.machine import MachineProfile, find_machine
from hotset.placing.planner import Plan, Planner

CONTEXT, PROMPT = 131072, 512
PEER_LAYER_US = 300.0
"""What llama.cpp loses for each layer whose experts the processor computes: 0.2 to 0.4 ms, from published
speeds of other models and machines (an RTX 2080 with Qwen3-30B-A3B among them)."""
SKEW = 1.67
"""The hottest share x of a layer's experts gets ``1 - (1 - x) ** SKEW`` of its selections: assumed, a middle
of estimates (51 % of the experts get 70 %, 68 % get 85 %)."""
PUBLISHED = {
    "all experts on the CPU": 15.7,
    "experts of 8 layers on the GPU": 17.9,
    "44 hottest of each": 22.7,
}
LAYERS, EXPERTS, HOT = 48, 256, 44

NET = DeltaNetConfig(n_key_heads=16, n_value_heads=64, head_dim=128, kernel=4, tiled=True)
MIX = ExpertsConfig(count=EXPERTS, used=8, size=1024, shared_size=1024)


def model() -> Checkpoint:
    """The shape: sizes not published were chosen so that 122e9 and 10e9 parameters come out."""
    full = LayerConfig(None, experts=MIX)
    layers = tuple(full if (i + 1) % 4 == 0 else replace(full, recurrent=NET) for i in range(LAYERS))
    config = ModelConfig(
        architecture="qwen35moe",
        vocab_size=248320,
        context_length=262144,
        hidden_size=3072,
        ffn_size=0,
        n_heads=32,
        n_kv_heads=2,
        head_dim=256,
        layers=layers,
        activation=Activation.SILU,
        gated=True,
        norm=NormKind.RMS,
        norm_eps=1e-6,
        gated_attention=True,
    )
    tensors: dict[str, Tensor] = {}

    def add(name: str, kind: TensorType, *shape: int) -> None:
        nbytes = int(np.prod(shape)) // kind.block_size * kind.block_bytes
        tensors[f"{name}.weight"] = Tensor(
            name, kind, shape, np.broadcast_to(np.zeros(1, np.uint8), (nbytes,))
        )

    hidden, q4, q5, q8 = config.hidden_size, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q8_0
    add("token_embd", q8, config.vocab_size, hidden)
    add("output", q8, config.vocab_size, hidden)
    for i, layer in enumerate(layers):
        b = f"blk.{i}"
        if layer.recurrent:
            values = NET.n_value_heads * NET.head_dim
            add(f"{b}.attn_qkv", q5, NET.channels, hidden)
            add(f"{b}.attn_gate", q4, values, hidden)
            add(f"{b}.ssm_out", q4, hidden, values)
        else:
            add(f"{b}.attn_q", q4, 2 * config.n_heads * config.head_dim, hidden)
            add(f"{b}.attn_k", q4, config.n_kv_heads * config.head_dim, hidden)
            add(f"{b}.attn_v", TensorType.Q6_K, config.n_kv_heads * config.head_dim, hidden)
            add(f"{b}.attn_output", q4, hidden, config.n_heads * config.head_dim)
        # As Q4_K_M and Q4_K_L files have it: half of the down matrices in six bits.
        down = TensorType.Q6_K if i % 2 else q4
        add(f"{b}.ffn_gate_inp", TensorType.F32, EXPERTS, hidden)
        add(f"{b}.ffn_gate_exps", q4, EXPERTS, MIX.size, hidden)
        add(f"{b}.ffn_up_exps", q4, EXPERTS, MIX.size, hidden)
        add(f"{b}.ffn_down_exps", down, EXPERTS, hidden, MIX.size)
        add(f"{b}.ffn_gate_shexp", q4, MIX.shared_size, hidden)
        add(f"{b}.ffn_up_shexp", q4, MIX.shared_size, hidden)
        add(f"{b}.ffn_down_shexp", down, hidden, MIX.shared_size)
    return Checkpoint(Path("Qwen3.5-122B-A10B, shape"), config, tensors)


def frequency() -> list[np.ndarray]:
    """Of each layer's experts, hottest first."""
    got = 1 - (1 - np.arange(EXPERTS + 1) / EXPERTS) ** SKEW
    return [np.diff(got) * MIX.used] * LAYERS


def placements() -> dict[str, Placement]:
    """The published ones: everything but experts on the GPU."""

    def with_hot(hot: list[int]) -> Placement:
        return Placement(tuple(LayerPlacement(True, n) for n in hot), head=True)

    hot = ([0] * LAYERS, [EXPERTS] * 8 + [0] * (LAYERS - 8), [HOT] * LAYERS)
    return dict(zip(PUBLISHED, map(with_hot, hot), strict=True))


def with_handshake(machine: MachineProfile, us: float) -> MachineProfile:
    """The machine, with another time for a layer that goes through the processor."""
    assert machine.gpu
    return replace(machine, gpu=replace(machine.gpu, handshake_us=us))


def row(name: str, engine: str, plan: Plan) -> dict[str, Any]:
    """One line of the table."""
    return {
        "placement": name,
        "engine": engine,
        "predicted_tokens_per_second": plan.tokens_per_second,
        "published_tokens_per_second": PUBLISHED.get(name) if engine == "llama.cpp" else None,
        "device_bytes": plan.device_bytes,
        "hot_experts": sum(layer.hot for layer in plan.placement.layers),
        "ms": plan.ms,
    }


def predictions(machine_name: str = "rtx-4090-7950x") -> list[dict[str, Any]]:
    """All lines."""
    machine, checkpoint = find_machine(machine_name), model()
    rows = []
    for engine, of in (("llama.cpp", with_handshake(machine, PEER_LAYER_US)), ("Hotset", machine)):
        planner = Planner(checkpoint, of, context=CONTEXT, prompt=PROMPT, frequency=frequency())
        for name, placement in placements().items():
            rows.append(row(name, engine, planner.predicted(placement)))
    rows.append(row("the planner's, 22.6 GB", "Hotset", planner.plan(22_600_000_000)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Predict speeds of a mixture of experts.")
    parser.add_argument("--json", type=Path, help="write the figures with versions here")
    args = parser.parse_args()
    rows = predictions()
    print("| placement | predicted for | **predicted** tokens/s | published tokens/s | GPU, GB |")
    print("| --- | --- | --- | --- | --- |")
    for line in rows:
        published = line["published_tokens_per_second"] or "–"
        speed, size = line["predicted_tokens_per_second"], line["device_bytes"] / 1e9
        print(f"| {line['placement']} | {line['engine']} | {speed:.1f} | {published} | {size:.1f} |")
    if args.json:
        write_json(args.json, report("plan_experts", vars(args), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
