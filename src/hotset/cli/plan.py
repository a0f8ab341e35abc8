"""`hotset plan`: which parts of a model would lie on the GPU, and how fast that is predicted to be."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotset.backends.contract import F32
    from hotset.formats.checkpoint import Checkpoint
    from hotset.placing.machine import MachineProfile
    from hotset.placing.planner import LayerUse, Plan, Planner

_PROMPT = 512


def _known(begun: str) -> list[str]:
    """Names of machines, for the shell to complete."""
    from hotset.placing.machine import known_machines

    return [name for name in known_machines() if name.startswith(begun)]


def plan(
    model: options.Model = None,
    *,
    vram: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory of the GPU to use, such as 8GiB.", show_default=False)
    ],
    context: options.Context = None,
    prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the prompt; 512, at most the context, if not given."),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=_known,
            help="Another machine, such as rtx-4090, or a profile's file (hotset doctor --json); this one if "
            "not given.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the plan: a PNG or SVG file.", show_default=False)
    ] = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Choose what lies on the GPU, layer by layer, and predict the speed.

    Runs nothing there but, on this machine, parts of the model that were never timed.
    """
    from hotset.cli.console import notes
    from hotset.cli.doctor import timed_here
    from hotset.model.reading import order_notes
    from hotset.placing.costs import gpu_of
    from hotset.placing.planner import Planner
    from hotset.serve.load import open_model
    from hotset.serve.loaded import check_context

    budget = options.parse_size(vram)
    if plot:
        from hotset.draw.picture import check_picture

        check_picture(plot, [Path(machine)] if machine else ())
    known = _machine(machine, budget)
    if known:
        gpu_of(known)
    checkpoint = open_model(model, options.overrides(override))
    if plot:
        check_picture(plot, checkpoint.files())
    context = check_context(checkpoint.config, context)
    profile, sides = (known, None) if known else timed_here(checkpoint)
    frequency, heat = _heat(checkpoint)
    planner = Planner(
        checkpoint,
        profile,
        context=context,
        prompt=prompt or min(_PROMPT, context),
        frequency=frequency,
        sides=sides,
    )
    found = planner.plan(budget)
    layers = enumerate(found.placement.layers)
    split = any(0 < layer.hot < checkpoint.config.units(i) for i, layer in layers)
    notes(checkpoint, *(order_notes(checkpoint) if split else ()))
    if plot:
        from hotset.draw.plots import plot_plan

        plot_plan(planner, found, f"{checkpoint.path.name} on {profile.name}", plot)
    facts = _facts(checkpoint, profile, planner, found, heat)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts, found.layers)


def _machine(name: str | None, budget: int) -> "MachineProfile | None":
    """The machine named, or where this one has no GPU, the smallest known one for the budget; None: this."""
    from hotset.placing.doctor import no_gpu
    from hotset.placing.machine import find_machine, smallest_machine

    if name is None and (reason := no_gpu()):
        name = smallest_machine(budget)
        print(f"note: {reason}: this is a plan for --machine {name}", file=sys.stderr)
    return None if name is None else find_machine(name)


def _heat(checkpoint: "Checkpoint") -> "tuple[F32 | None, str]":
    """How often units are computed where the file does not say, and what is known of it, for people."""
    from hotset.core.config import Way
    from hotset.placing.sizes import needs_profile

    plans = [layer.ffn for layer in checkpoint.config.layers]
    chosen = any(plan and plan.way is not Way.DENSE for plan in plans)
    if not chosen and not checkpoint.config.mixture:
        return None, "none: every neuron is computed"
    if not needs_profile(checkpoint):
        return None, str(checkpoint.metadata.get("hotset.profile.corpus", "the file's"))
    from hotset.cli.console import progress
    from hotset.serve.load import neuron_frequency

    with progress("Profiling built-in text") as profiling:
        return neuron_frequency(checkpoint, progress=profiling), "a few hundred tokens of built-in text"


def _facts(
    checkpoint: "Checkpoint",
    machine: "MachineProfile",
    planner: "Planner",
    plan: "Plan",
    heat: str,
) -> dict[str, Any]:
    layers = [dataclasses.asdict(use) for use in plan.layers]
    return {
        "model": str(checkpoint.path),
        "machine": machine.name,
        "profile": heat,
        "units": "experts" if checkpoint.config.mixture else "neurons",
        "budget_bytes": plan.budget,
        "context": plan.context,
        "prompt": plan.prompt,
        "device_bytes": {
            "attention": sum(use.attention_bytes for use in plan.layers),
            "kv_cache": sum(use.kv_bytes for use in plan.layers),
            "neurons": sum(use.neuron_bytes for use in plan.layers),
            "predictors": sum(use.predictor_bytes for use in plan.layers),
            "head": plan.head_bytes,
            "working_buffers": plan.working_bytes,
            "total": plan.device_bytes,
        },
        "host_bytes": plan.host_bytes,
        "main_memory_bytes": machine.cpu.ram_bytes,
        "budget_for_everything_bytes": planner.everything,
        "predicted": {
            "tokens_per_second": plan.tokens_per_second,
            "ms_per_token": plan.ms,
            "ms_by_part": dataclasses.asdict(plan.times),
            "first_token_ms": plan.first_token_ms,
            "cold_neurons_of_prompts": plan.cold_prefill.value,
            "stream_cold_neurons_from_tokens": plan.stream_from,
        },
        "lower_bound_ms_per_token": plan.bound_ms,
        "head_on_device": plan.placement.head,
        "layers": layers,
    }


def _print(facts: dict[str, Any], layers: "Sequence[LayerUse]") -> None:
    from hotset.cli.console import size, table

    predicted, device, units = facts["predicted"], facts["device_bytes"], facts["units"]
    parts = predicted["ms_by_part"]
    bound = facts["lower_bound_ms_per_token"]
    prompts = {"cpu": f"cold {units} on the CPU", "stream": f"cold {units} streamed to the GPU"}
    names = {"ffn": "FFN", "handshakes": "hand-shakes"}
    memory = facts["main_memory_bytes"]
    short = "" if facts["host_bytes"] < memory else ": TOO LITTLE, the model would be read from disk"
    slack = max(0.0, predicted["ms_per_token"] / bound - 1)
    table(
        [
            ("model", facts["model"]),
            ("machine", facts["machine"]),
            (f"profile of {facts['units']}", facts["profile"]),
            ("budget", f"{size(facts['budget_bytes'])}, used {size(device['total'])}"),
            ("budget for everything", size(facts["budget_for_everything_bytes"])),
            ("main memory", f"{size(facts['host_bytes'])} of {size(int(memory))}{short}"),
            ("predicted decode", f"{predicted['tokens_per_second']:.1f} tokens/s"),
            (
                "a token's milliseconds",
                f"{predicted['ms_per_token']:.2f}: "
                + ", ".join(f"{names.get(part, part)} {ms:.2f}" for part, ms in parts.items()),
            ),
            (
                f"predicted first token, {facts['prompt']} tokens",
                f"{predicted['first_token_ms'] / 1e3:.2f} s, {prompts[predicted['cold_neurons_of_prompts']]}",
            ),
            ("checked", f"at most {slack:.2%} from the best there is"),
        ]
    )
    print()
    kinds = {
        "attention": "attention",
        "kv_cache": f"KV cache of {facts['context']} tokens",
        "neurons": units,
        "predictors": "predictors",
        "head": "head",
        "working_buffers": "working buffers",
        "total": "together",
    }
    table([(kind, size(device[key])) for key, kind in kinds.items()], header=("on the GPU", "bytes"))
    print()
    table(
        [
            (
                _span(first, last),
                "GPU" if use.placement.attention else "CPU",
                f"{use.placement.hot}",
                size(use.attention_bytes + use.kv_bytes),
                size(use.neuron_bytes + use.predictor_bytes),
                size(use.host_bytes),
                f"{use.ms:.3f}",
            )
            for first, last, use in _alike(layers)
        ]
        + [("head", "GPU" if facts["head_on_device"] else "CPU", "", "", "", "", f"{parts['head']:.3f}")],
        header=("layer", "attention", f"hot {units}", "attention, cache", units, "CPU's", "ms"),
    )


def _alike(layers: "Sequence[LayerUse]") -> "list[tuple[int, int, LayerUse]]":
    """Runs of layers (first, last) that are placed alike."""
    runs: list[tuple[int, int, LayerUse]] = []
    for i, use in enumerate(layers):
        if runs and runs[-1][2] == use:
            runs[-1] = (runs[-1][0], i, use)
        else:
            runs.append((i, i, use))
    return runs


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
