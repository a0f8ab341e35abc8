"""`hotset doctor`: what this machine can do, and how long a model's parts take on it."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.formats.checkpoint import Checkpoint
    from hotset.placing.machine import MachineProfile

_NAMES = {
    "stream": "memory, streamed",
    "stream_contended": "the same, both sides busy",
    "gather": "memory, scattered rows of 4 and 8 bits",
    "gather_contended": "the same, both sides busy",
    "gather_f16": "memory, scattered rows of F16",
    "gather_f16_contended": "the same, both sides busy",
    "kernel_share": "matrices for one token, share of streaming",
    "part_us": "time of a part without weights",
    "tflops": "prompts",
    "parts": "sums of a sparse layer, at most",
    "ram_bytes": "memory",
    "to_device": "main memory to GPU, pinned",
    "to_device_contended": "the same, both sides busy",
    "to_host": "GPU to main memory, pinned",
    "to_host_contended": "the same, both sides busy",
    "handshake_us": "hand-shake, there and back",
    "vram_bytes": "memory",
}


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Also time the parts of a model, on the CPU and the GPU; none if not given.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure again, even if that was done before.")
    ] = False,
    threads: options.Threads = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Measure this machine's memories and the bus between them, once; `hotset plan` uses it.

    Parts of models that are run with --vram are timed at their first use, or here. Runs with --threads have
    measurements of their own.
    """
    if override and model is None:
        raise RequestError("--override is of a model: name one")
    from hotset.cli.console import progress, table
    from hotset.placing.doctor import cache_path, no_gpu, this_machine
    from hotset.serve.load import open_model

    checkpoint = None if model is None else open_model(model, options.overrides(override))
    with progress("Measuring") as measuring:
        machine = this_machine(threads=threads, again=again, progress=measuring)
    if checkpoint and (reason := no_gpu()):
        print(f"note: {reason}: no parts were timed", file=sys.stderr)
    elif checkpoint:
        machine, _ = timed_here(checkpoint, threads)
    document = machine.as_json()
    if as_json:
        print(json.dumps(document, indent=2))
        return
    path = cache_path(threads)
    kept = str(path) if path.is_file() else f"not kept: {path} cannot be written (set XDG_CACHE_HOME)"
    table([("machine", machine.name), ("profile", kept)])
    for side, title in (("cpu", "processor"), ("gpu", "GPU")):
        print()
        if document[side] is None:
            print(f"no GPU's part: {no_gpu() or 'measure again with --again'}")
            continue
        table(
            [
                (_NAMES[name], _value(entry["value"], entry["unit"]), entry["source"])
                for name, entry in document[side].items()
            ],
            header=(title, "value", "source"),
        )
    for sides, times in document.get("times", {}).items():
        print()
        table(_part_rows(times), header=(sides, "on the GPU", "read or computed", "us"))


def timed_here(checkpoint: "Checkpoint", threads: int | None = None) -> "tuple[MachineProfile, str]":
    """This machine's profile with the times of the model's parts, and the sides that they are of."""
    from hotset.backends.cpu import CpuBackend
    from hotset.cli.console import progress
    from hotset.placing.doctor import machine_for
    from hotset.placing.timing import sides
    from hotset.serve.load import gpu_device

    device, host = gpu_device(), CpuBackend(threads=threads)
    with progress("Timing the model's parts") as timing:
        return machine_for(checkpoint, device, host, progress=timing), sides(host, device)


def _part_rows(times: dict[str, Any]) -> list[tuple[str, ...]]:
    """For a table: each part's times, a line for each number that they depend on."""
    rows: list[tuple[str, ...]] = []
    for name, part in times.items():
        for row in part:
            for n, us in zip(row["n"], row["us"], strict=True):
                rows.append((name, f"{row['hot']}", f"{n:.0f}", f"{us:.0f}"))
    return rows


def _value(value: float, unit: str) -> str:
    from hotset.cli.console import size

    if unit == "bytes":
        return size(int(value))
    return f"{value:.0%}" if unit == "share" else f"{value:.3g} {unit}"
