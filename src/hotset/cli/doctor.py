"""`hotset doctor`: what this machine can do."""

import json
from typing import Annotated

import typer

from hotset.cli import options

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
    again: Annotated[
        bool, typer.Option("--again", help="Measure again, even if that was done before.")
    ] = False,
    as_json: options.AsJSON = False,
) -> None:
    """Measure this machine's memories and the bus between them, once; `hotset plan` uses it."""
    from hotset.cli.console import progress, table
    from hotset.placing.doctor import cache_path, no_gpu, this_machine

    with progress("Measuring") as measuring:
        machine = this_machine(again=again, progress=measuring)
    document = machine.as_json()
    if as_json:
        print(json.dumps(document, indent=2))
        return
    path = cache_path()
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


def _value(value: float, unit: str) -> str:
    from hotset.cli.console import size

    if unit == "bytes":
        return size(int(value))
    return f"{value:.0%}" if unit == "share" else f"{value:.3g} {unit}"
