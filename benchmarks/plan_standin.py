"""How well plans predict: random placements of a model, timed on the stand-in device, against the plan.

The stand-in is a part of the processor in a GPU's role, so what it shows is whether a plan's sum of timed
parts is right, not what a GPU gives: budgets are simulated, and both sides share one memory. Parts are timed
first (`hotset.placing.timing`), then every placement is built and decodes some tokens.

    python benchmarks/sparse_models.py llama-2-7b --layers 12 --out reglu.gguf
    python benchmarks/plan_standin.py reglu.gguf --json results/plan-standin.json
"""

import argparse
import gc
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# The stand-in predicts by NumPy, whose threads would take the host's core.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from gpu_suite_models import fire_rates
from machine import model_identity, report, write_json
from numpy.typing import NDArray

from hotset.activations.collect import collect
from hotset.activations.profile import fingerprint
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import LayerPlacement, Placement
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.build import build_hybrid
from hotset.model.build import build_transformer
from hotset.placing.machine import MachineProfile, find_machine
from hotset.placing.planner import Planner
from hotset.placing.sizes import ModelParts
from hotset.placing.timing import sides, timed
from hotset.testing.stand_in import StandInDevice

BEFORE, CONTEXT = 64, 512


def without_audits(checkpoint: Checkpoint) -> Checkpoint:
    """The model with cut-offs that stay: a sequence's first tokens are audited often, later ones seldom."""
    config = checkpoint.config
    layers = tuple(replace(x, ffn=x.ffn and replace(x.ffn, kept=0.0)) for x in config.layers)
    return replace(checkpoint, config=replace(config, layers=layers))


def selected(checkpoint: Checkpoint, host: CpuBackend) -> NDArray[np.floating]:
    """How often a mixture's experts are selected for random tokens."""
    ids = np.random.default_rng(2).integers(0, checkpoint.config.vocab_size, (4, 128)).astype(np.int32)
    model = build_transformer(checkpoint, host)
    return collect(model, list(ids), model="", corpus="", fingerprint=fingerprint(checkpoint)).frequency


def random_placement(checkpoint: Checkpoint, parts: ModelParts, rng: np.random.Generator) -> Placement:
    """Each layer's attention on either side, and any number of slabs, or of experts, on the device."""
    config = checkpoint.config
    layers = []
    for i in range(config.n_layers):
        slab = 1 if config.layers[i].experts else 64
        kind, slabs = rng.integers(4), config.units(i) // slab
        few = slabs // 4 + 1
        hot = (0, int(rng.integers(slabs)), int(rng.integers(few)), slabs)[kind] * slab
        experts = parts.layers[i].ffn.experts[:hot] if config.layers[i].experts else None
        layers.append(LayerPlacement(bool(rng.integers(2)), hot, experts))
    return Placement(tuple(layers), bool(rng.integers(2)))


def measured(
    checkpoint: Checkpoint, placement: Placement, device: StandInDevice, host: CpuBackend, tokens: int
) -> tuple[float, float]:
    """Milliseconds of a token, the median of some after `BEFORE` others; and the cold neurons it computes."""
    model = build_hybrid(checkpoint, placement, device, host)
    ids = np.random.default_rng(1).integers(0, checkpoint.config.vocab_size, CONTEXT).astype(np.int32)
    sequence = model.sequence(CONTEXT)
    model.forward(Batch.of(sequence, ids[:BEFORE], lossless=True))
    times = []
    for i in range(BEFORE, BEFORE + tokens):
        start = time.perf_counter()
        model.forward(Batch.of(sequence, ids[i : i + 1]))
        times.append(time.perf_counter() - start)
    model.close()
    work = [chooser.work for chooser in sequence.choosers if chooser]
    return statistics.median(times) * 1e3, sum(layer.chosen / max(layer.rows, 1) for layer in work)


def rows(
    checkpoint: Checkpoint,
    machine: MachineProfile,
    device: StandInDevice,
    host: CpuBackend,
    frequency: NDArray[np.floating],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """One for each placement."""
    planner = Planner(
        checkpoint, machine, context=CONTEXT, prompt=BEFORE, frequency=frequency, sides=sides(host, device)
    )
    rng, found = np.random.default_rng(args.seed), []
    for number in range(args.placements):
        placement = random_placement(checkpoint, planner.parts, rng)
        predicted = planner.predicted(placement)
        ms, chosen = measured(checkpoint, placement, device, host, args.tokens)
        gc.collect()
        cold = sum(rate[layer.hot :].sum() for rate, layer in zip(frequency, placement.layers, strict=True))
        share = None if checkpoint.config.mixture else chosen / cold
        found.append(
            {
                "placement": number,
                "attention_on_device": sum(layer.attention for layer in placement.layers),
                "hot_share": sum(layer.hot for layer in placement.layers)
                / sum(checkpoint.config.units(i) for i in range(checkpoint.config.n_layers)),
                "head_on_device": placement.head,
                "cold_neurons_chosen_over_predicted": share,
                "predicted_ms": predicted.ms,
                "measured_ms": ms,
                "measured_over_predicted": ms / predicted.ms,
            }
        )
        row = found[-1]
        print(
            f"| {number} | {row['attention_on_device']} | {row['hot_share']:.0%} | {share or 1:.2f} | "
            f"{predicted.ms:.1f} | {ms:.1f} | {row['measured_over_predicted']:.2f} |",
            flush=True,
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Time random placements against their plans.")
    parser.add_argument("model", type=Path, help="of sparse_models.py with its usual density, or a mixture")
    parser.add_argument("--placements", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=24, help="of each placement")
    parser.add_argument("--threads", type=int, default=1, help="of the host; the stand-in has one more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", type=Path, help="a profile with the parts' times; written if not there")
    parser.add_argument("--json", type=Path, help="write the figures with versions here")
    args = parser.parse_args()
    checkpoint = without_audits(open_checkpoint(args.model))
    device, host = StandInDevice(), CpuBackend(threads=args.threads)
    name = str(args.machine) if args.machine and args.machine.exists() else "rtx-4060"
    start = time.monotonic()
    machine = timed(checkpoint, device, host, find_machine(name))
    print(f"parts timed in {time.monotonic() - start:.1f} s", flush=True)
    if args.machine:
        machine.save(args.machine)
    frequency = selected(checkpoint, host) if checkpoint.config.mixture else fire_rates(checkpoint, "")
    print("| placement | attention there | hot | chosen/predicted | predicted ms | measured ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found = rows(checkpoint, machine, device, host, frequency, args)
    errors = [abs(row["measured_over_predicted"] - 1) for row in found]
    print(f"largest error {max(errors):.1%}, median {statistics.median(errors):.1%}")
    if args.json:
        results = {
            "simulated_budget": True,
            "device": "stand-in: one thread of the processor",
            "model": model_identity(args.model),
            "times": machine.as_json()["times"],
            "placements": found,
        }
        write_json(args.json, report("plan_standin", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
