"""`hotset bench`: how fast a model runs here."""

import dataclasses
import json
import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options
from hotset.core.config import Way
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotset.formats.checkpoint import Checkpoint
    from hotset.measure.speed import Sizes, Speed
    from hotset.serve.loaded import Model

_MOST_SEQUENCES = 64


class Sweep(str, Enum):
    """What a sweep varies."""

    DENSITY = "density"


def bench(
    model: options.Model = None,
    *,
    threads: options.Threads = None,
    ffn: options.Neurons = None,
    vram: options.Vram = None,
    ram: options.Ram = None,
    override: options.Override = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens of the prompt: 512 if not given; 0 leaves it out.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=0, help="Single tokens: 128 if not given; 0 leaves them out.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Times that each is measured: 3.")] = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Decode so many sequences together, after 128 tokens each, such as 1,2,4,8.",
            show_default=False,
        ),
    ] = None,
    zones: Annotated[
        bool, typer.Option("--zones", help="Show where the time of a token goes, on the CPU.")
    ] = False,
    sweep: Annotated[
        Sweep | None,
        typer.Option(
            case_sensitive=False, help="Decode with 5 to 100 % of the neurons, for models stored by neuron."
        ),
    ] = None,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace", help="Follow density, cut-offs and the activation kept while the subject changes."
        ),
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text to trace, a subject a file, to its end; may be repeated. Built-in text if not given."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the sweep or the trace: a PNG or SVG file.", show_default=False)
    ] = None,
    as_json: options.AsJSON = False,
) -> None:
    """Time a prompt of 512 tokens and 128 single tokens; medians of three, and the memory bandwidth."""
    sizes = {"prompt_tokens": prompt_tokens, "tokens": tokens, "repeats": repeats}
    sizes_given = {name: size for name, size in sizes.items() if size is not None}
    if (sizes_given or parallel) and (sweep or trace):
        raise RequestError(
            "--prompt-tokens, --tokens, --repeats and --parallel go with neither --sweep nor --trace"
        )
    if zones and (sweep or trace or parallel or vram):
        raise RequestError("--zones goes with none of --sweep, --trace, --parallel and --vram")
    if sweep and (trace or ffn):
        raise RequestError("--sweep goes with neither --trace nor --ffn")
    if vram and (sweep or trace):
        raise RequestError("--vram goes with neither --sweep nor --trace: they measure the CPU")
    if ram and (sweep or trace or zones):
        raise RequestError("--ram goes with none of --sweep, --trace and --zones")
    if (plot or text) and not (sweep or trace):
        raise RequestError("--plot and --text need --sweep density or --trace")
    if text and not trace:
        raise RequestError("--text needs --trace")
    counts = _counts(parallel, tokens)
    if plot:
        from hotset.draw.picture import check_picture

        check_picture(plot, text or ())

    from hotset.serve.load import open_model

    checkpoint = open_model(model, options.overrides(override))
    _check_sizes(sizes_given, checkpoint.config.context_length, bool(counts))
    if sweep:
        _sweep(checkpoint, threads, plot, as_json)
    elif zones:
        _zones(checkpoint, threads, ffn, sizes_given, as_json)
    elif trace:
        _trace(checkpoint, threads, ffn, text or [], plot, as_json)
    else:
        _speed(
            checkpoint,
            threads,
            ffn,
            options.vram_bytes(vram),
            options.ram_bytes(ram),
            sizes_given,
            counts,
            as_json,
        )


def _counts(text: str | None, tokens: int | None) -> list[int]:
    """The numbers of sequences in ``1,2,4,8``."""
    parts = [] if text is None else text.split(",")
    counts = [int(part) for part in parts if part.strip().isdecimal()]
    if len(counts) < len(parts) or any(not 1 <= count <= _MOST_SEQUENCES for count in counts):
        raise RequestError(
            f"--parallel is {text!r}: expected numbers of 1 to {_MOST_SEQUENCES}, such as 1,2,4,8"
        )
    if counts and tokens == 0:
        raise RequestError("--parallel times single tokens: expected --tokens of 1 or more")
    return counts


def _check_sizes(sizes_given: dict[str, int], context: int, parallel: bool) -> None:
    """Raise `RequestError` where the context has no room for what is to be timed."""
    from hotset.measure.parallel import opening
    from hotset.measure.speed import room

    most = room(context)
    tokens = min(most.tokens, context - opening(context)) if parallel else most.tokens
    for name, limit in (("prompt_tokens", most.prompt_tokens), ("tokens", tokens)):
        if (given := sizes_given.get(name, 0)) > limit:
            raise RequestError(
                f"--{name.replace('_', '-')} is {given}: expected at most {limit}, for which the model's "
                f"context of {context} tokens has room"
            )


def _speed(
    model: "Checkpoint",
    threads: int | None,
    ffn: Way | None,
    vram: int | None,
    ram: int | None,
    sizes_given: dict[str, int],
    counts: list[int],
    as_json: bool,
) -> None:
    from hotset.cli.console import notes, progress, table
    from hotset.measure.parallel import measure_parallel
    from hotset.measure.speed import Sizes, measure
    from hotset.serve.load import load_model

    sizes = Sizes(**sizes_given)
    context, together = room_for(sizes, counts, model.config.context_length)
    with progress("Loading") as loading:
        loaded = load_model(
            model,
            threads=threads,
            ffn=ffn,
            vram=vram,
            ram=ram,
            context=context,
            parallel=together,
            progress=loading,
        )
    notes(loaded)
    with progress("Measuring") as measuring:
        speed = measure(loaded, sizes, progress=measuring)
    parallel = []
    if counts:
        with progress("Measuring several sequences") as measuring:
            parallel = measure_parallel(loaded, counts, sizes, progress=measuring)
    if as_json:
        several = {"parallel": [dataclasses.asdict(point) for point in parallel]} if counts else {}
        print(json.dumps(_machine(loaded) | dataclasses.asdict(speed) | several, indent=2))
        return
    table(_speed_rows(loaded, speed))
    if parallel:
        rows = [
            (
                str(point.sequences),
                f"{point.tokens_per_second:.1f}",
                f"{point.gap_p50_ms:.1f}",
                f"{point.gap_max_ms:.1f}",
            )
            for point in parallel
        ]
        print()
        table(rows, header=("sequences", "tokens/s", "gap, median ms", "gap, longest ms"))


def room_for(sizes: "Sizes", counts: "Sequence[int]", longest: int) -> tuple[int, int]:
    """The context, at most `longest`, and the requests that a GPU is to have room for.

    Of several sequences each is timed as a copy of one that has read. None saves recurrent states, for which
    a request has room.
    """
    from hotset.measure.parallel import CONTEXT_TOKENS
    from hotset.model.transformer import SINK_TOKENS
    from hotset.state.kv_types import SAVED_STATES, STATES

    sequences = 2 * max(counts, default=0)
    alone = min(max(sizes.prompt_tokens, SINK_TOKENS + sizes.tokens), longest)
    tokens = max(alone, sequences * min(CONTEXT_TOKENS + sizes.tokens, longest))
    states = (STATES - SAVED_STATES) * sequences
    requests = max(math.ceil(tokens / longest), math.ceil(states / STATES), 1)
    return math.ceil(tokens / requests), requests


def _machine(loaded: "Model") -> dict[str, Any]:
    backend = loaded.backend
    values: dict[str, Any] = {
        "model": str(loaded.path),
        "threads": backend.threads,
        "level": backend.level,
    }
    if loaded.config.mixture:
        values["experts"] = dataclasses.asdict(backend.packed_experts)
    return values


def _speed_rows(loaded: "Model", speed: "Speed") -> list[tuple[str, str]]:
    from hotset.cli.console import size

    backend = loaded.backend
    rows = [("model", loaded.path.name), ("threads, kernels", f"{backend.threads}, {backend.level}")]
    for name, tokens, rate in (
        ("prefill", speed.prefill_tokens, speed.prefill_tokens_per_second),
        ("decode", speed.decode_tokens, speed.decode_tokens_per_second),
    ):
        if rate is not None:
            rows.append((f"{name}, {tokens} tokens", f"{rate:.1f} tokens/s"))
    if speed.density is not None:
        rows.append(("neurons computed", f"{speed.density:.1%}"))
    if loaded.config.mixture:
        packed = backend.packed_experts
        rows.append(("experts packed", f"{packed.experts}, {size(packed.nbytes)}"))
        rows.append(("experts packed, given back so far", f"{packed.packs}, {packed.evictions}"))
    if loaded.plan:  # two memories, neither of which is read alone
        rows.append(("predicted decode", f"{loaded.plan.tokens_per_second:.1f} tokens/s"))
        return rows
    if speed.decode_gb_per_second is not None:
        rows.append(("decode reads weights at", f"{speed.decode_gb_per_second:.1f} GB/s"))
    rows.append(("memory bandwidth, the most seen", f"{speed.memory_gb_per_second:.1f} GB/s"))
    if speed.memory_share is not None:
        rows.append(("share of the bandwidth", f"{speed.memory_share:.0%}"))
    return rows


def _zones(
    model: "Checkpoint", threads: int | None, ffn: Way | None, sizes_given: dict[str, int], as_json: bool
) -> None:
    from hotset.cli.console import notes, progress, table
    from hotset.measure.speed import Sizes
    from hotset.measure.zones import measure_zones
    from hotset.serve.load import load_model

    sizes = Sizes(**sizes_given)
    if not (sizes.prompt_tokens or sizes.tokens):
        raise RequestError("--zones: expected --prompt-tokens or --tokens of 1 or more, found 0 for both")
    with progress("Loading") as loading:
        loaded = load_model(model, threads=threads, ffn=ffn, progress=loading)
    notes(loaded)
    with progress("Measuring") as measuring:
        zones = measure_zones(loaded, sizes, progress=measuring)
    if as_json:
        print(json.dumps([dataclasses.asdict(zone) for zone in zones], indent=2))
        return
    header = ["zone"]
    rows = [[zone.zone] for zone in zones] + [["all"]]
    for name, column in (
        ("decode", [zone.decode_us for zone in zones]),
        ("prefill", [zone.prefill_us for zone in zones]),
    ):
        times = [us for us in column if us is not None]
        if not times:
            continue
        header += [f"{name}, us a token", "share"]
        for row, us in zip(rows, [*times, sum(times)], strict=True):
            row += [f"{us:.1f}", f"{us / sum(times):.1%}"]
    table([tuple(row) for row in rows], header=tuple(header))


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

    texts = [(path.name, read_text(path)) for path in files] or list(SUBJECTS.items())
    with progress("Loading") as loading:
        loaded = load_model(model, threads=threads, ffn=ffn, progress=loading)
    with progress("Decoding") as decoding:
        points = trace(loaded, texts, progress=decoding)
    if plot:
        from hotset.draw.plots import plot_trace

        plot_trace(points, loaded.path.name, plot)
    if as_json:
        found = [
            dataclasses.asdict(point) | {"kept": None if math.isnan(point.kept) else point.kept}
            for point in points
        ]
        print(json.dumps(found, indent=2))
        return
    table(
        [
            (
                point.subject,
                str(point.tokens),
                f"{point.density:.1%}",
                "" if math.isnan(point.kept) else f"{point.kept:.1%}",
                f"{sum(point.cutoffs) / len(point.cutoffs):.4f}",
            )
            for point in points
        ],
        header=("subject", "tokens", "density", "activation kept", "mean cut-off"),
    )
