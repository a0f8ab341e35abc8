"""`hotset bench`: how fast a model runs here."""

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli import options
from hotset.core.config import Way
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.formats.checkpoint import Checkpoint


class Sweep(str, Enum):
    """What a sweep varies."""

    DENSITY = "density"


def bench(
    model: options.Model = None,
    *,
    threads: options.Threads = None,
    ffn: options.Neurons = None,
    vram: options.Vram = None,
    override: options.Override = None,
    sweep: Annotated[
        Sweep | None,
        typer.Option(
            case_sensitive=False, help="Decode with 5 to 100 % of the neurons, for models stored by neuron."
        ),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Follow recall, density and cut-offs while the subject changes.")
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text to trace, a subject a file; may be repeated. Built-in text if not given."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the sweep or the trace: a PNG or SVG file.", show_default=False)
    ] = None,
    as_json: options.AsJSON = False,
) -> None:
    """Time a prompt of 512 tokens and 128 single tokens; medians of three, beside the memory bandwidth."""
    if sweep and (trace or ffn):
        raise RequestError("--sweep goes with neither --trace nor --ffn")
    if vram and (sweep or trace):
        raise RequestError("--vram goes with neither --sweep nor --trace: they measure the CPU")
    if (plot or text) and not (sweep or trace):
        raise RequestError("--plot and --text need --sweep density or --trace")
    if text and not trace:
        raise RequestError("--text needs --trace")
    if plot:
        from hotset.draw.picture import check_picture

        check_picture(plot, text or ())

    from hotset.serve.load import open_model

    checkpoint = open_model(model, options.overrides(override))
    if sweep:
        _sweep(checkpoint, threads, plot, as_json)
    elif trace:
        _trace(checkpoint, threads, ffn, text or [], plot, as_json)
    else:
        _speed(checkpoint, threads, ffn, options.vram_bytes(vram), as_json)


def _speed(
    model: "Checkpoint", threads: int | None, ffn: Way | None, vram: int | None, as_json: bool
) -> None:
    from hotset.cli.console import notes, progress, table
    from hotset.measure.speed import PREFILL_TOKENS, measure
    from hotset.serve.load import load_model

    with progress("Loading") as loading:
        loaded = load_model(
            model, threads=threads, ffn=ffn, vram=vram, context=PREFILL_TOKENS, progress=loading
        )
    notes(loaded)
    with progress("Measuring") as measuring:
        speed = measure(loaded, progress=measuring)
    backend = loaded.backend
    if as_json:
        machine = {"model": str(loaded.path), "threads": backend.threads, "level": backend.level}
        print(json.dumps(machine | dataclasses.asdict(speed), indent=2))
        return
    neurons = [] if speed.density is None else [("neurons computed", f"{speed.density:.1%}")]
    bandwidth = [
        ("decode reads weights at", f"{speed.decode_gb_per_second:.1f} GB/s"),
        ("memory bandwidth, the most seen", f"{speed.memory_gb_per_second:.1f} GB/s"),
        ("share of the bandwidth", f"{speed.memory_share:.0%}"),
    ]
    if loaded.plan:  # two memories, neither of which is read alone
        bandwidth = [("predicted decode", f"{loaded.plan.tokens_per_second:.1f} tokens/s")]
    table(
        [
            ("model", loaded.path.name),
            ("threads, kernels", f"{backend.threads}, {backend.level}"),
            (f"prefill, {speed.prefill_tokens} tokens", f"{speed.prefill_tokens_per_second:.1f} tokens/s"),
            (f"decode, {speed.decode_tokens} tokens", f"{speed.decode_tokens_per_second:.1f} tokens/s"),
            *neurons,
            *bandwidth,
        ]
    )


def _sweep(model: "Checkpoint", threads: int | None, plot: Path | None, as_json: bool) -> None:
    from hotset.cli.console import progress, table
    from hotset.measure.sweep import PLAN, sweep
    from hotset.serve.load import load_model

    with progress("Loading") as loading:
        loaded = load_model(model, threads=threads, ffn=PLAN, progress=loading)
    with progress("Measuring") as measuring:
        points = sweep(loaded, progress=measuring)
    if plot:
        from hotset.draw.plots import plot_sweep

        plot_sweep(points, loaded.path.name, plot)
    if as_json:
        print(json.dumps([dataclasses.asdict(point) for point in points], indent=2))
        return
    table(
        [
            (
                f"{point.density:.1%}",
                f"{point.decode_tokens_per_second:.1f}",
                f"{point.roofline_tokens_per_second:.1f}",
                f"{point.decode_tokens_per_second / point.roofline_tokens_per_second:.0%}",
            )
            for point in points
        ],
        header=("neurons computed", "tokens/s", "bandwidth allows", "share"),
    )


def _trace(
    model: "Checkpoint",
    threads: int | None,
    ffn: Way | None,
    files: list[Path],
    plot: Path | None,
    as_json: bool,
) -> None:
    from hotset.activations.sample_text import SUBJECTS
    from hotset.cli.console import progress, table
    from hotset.cli.text import read_text
    from hotset.measure.trace import trace
    from hotset.serve.load import load_model

    texts = {path.name: read_text(path) for path in files} or SUBJECTS
    with progress("Loading") as loading:
        loaded = load_model(model, threads=threads, ffn=ffn, progress=loading)
    with progress("Decoding") as decoding:
        points = trace(loaded, texts, progress=decoding)
    if plot:
        from hotset.draw.plots import plot_trace

        plot_trace(points, loaded.path.name, plot)
    if as_json:
        print(json.dumps([dataclasses.asdict(point) for point in points], indent=2).replace("NaN", "null"))
        return
    table(
        [
            (
                point.subject,
                str(point.tokens),
                f"{point.density:.1%}",
                f"{point.recall:.1%}",
                f"{sum(point.cutoffs) / len(point.cutoffs):.4f}",
            )
            for point in points
        ],
        header=("subject", "tokens", "density", "recall", "mean cut-off"),
    )
