"""`hotset convert`: store a model by neuron."""

import json
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options
from hotset.cli.outputs import check_model_output
from hotset.cli.text import read_text
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.convert.by_neuron import Conversion
    from hotset.formats.checkpoint import Checkpoint

_MEASURED_TOKENS = 4096
"""So many of the text's tokens settle the divergence to a few per cent."""


class FFNType(str, Enum):
    """Types in which neurons can be stored."""

    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    Q8_0 = "q8_0"
    F16 = "f16"


def convert(
    model: options.Model = None,
    *,
    profile: Annotated[Path, typer.Option(help="Activation profile of the model (hotset profile).")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.gguf", help="The file to write.")],
    ffn: Annotated[
        FFNType | None,
        typer.Option(
            "--ffn",
            case_sensitive=False,
            help="Type of the neurons; if not given, each matrix's own, and 8 bits for a quantised down.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="UTF-8 text on which to measure what storing down again has changed."),
    ] = None,
    threads: options.Threads = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Store a model by neuron: hottest first, down transposed, with its plan and profile, as a GGUF file.

    Only then can single neurons be skipped. Models with a ReLU, ReGLU or squared ReLU skip exactly what is
    zero; of a mixture the experts are sorted, their neurons are not. For SiLU and GELU go on with hotset
    calibrate.
    """
    check_model_output(output, [model, profile, *(text or ())])
    written = "\n".join(read_text(path) for path in text) if text else ""
    if text and not written.strip():
        raise RequestError("--text: expected text to measure on, found none")

    from hotset.activations.profile import load_profile
    from hotset.cli.console import notes, progress
    from hotset.convert.by_neuron import convert as convert_model
    from hotset.core.limits import available_cores
    from hotset.formats import TensorType
    from hotset.serve.load import open_model

    checkpoint = open_model(model, options.overrides(override))
    check_model_output(output, checkpoint.files())
    notes(checkpoint)
    loaded_profile = load_profile(profile)
    with progress("Converting") as converting:
        conversion = convert_model(
            checkpoint,
            output,
            loaded_profile,
            ffn_type=TensorType[ffn.name] if ffn else None,
            threads=threads or available_cores(),
            measure=(lambda path: _divergence(path, checkpoint, written, threads)) if written else None,
            progress=converting,
        )
    if as_json:
        print(json.dumps(_facts(checkpoint, output, conversion), indent=2))
    else:
        _print(checkpoint, output, conversion)


def _divergence(path: Path, source: "Checkpoint", text: str, threads: int | None) -> float:
    """Mean KL divergence of a converted model, all its neurons computed, from its source."""
    from hotset.cli.console import progress
    from hotset.core.config import Way
    from hotset.measure.perplexity import evaluate, tokenize
    from hotset.serve.load import load_model

    with progress("Loading") as loading:
        converted = load_model(path, threads=threads, ffn=Way.DENSE, progress=loading)
        reference = load_model(source, threads=threads, progress=loading)
    ids = tokenize(text, converted, reference, limit=_MEASURED_TOKENS)
    with progress("Measuring") as measuring:
        divergence = evaluate(converted, ids, against=reference, progress=measuring).divergence
    return divergence.kl_mean if divergence else 0.0


def _facts(checkpoint: "Checkpoint", out: Path, conversion: "Conversion") -> dict[str, Any]:
    return {
        "model": str(checkpoint.path),
        "out": str(out),
        "out_bytes": conversion.size,
        "ways": [plan.way.value if plan else None for plan in conversion.plans],
        "down_error": list(conversion.down_error),
        "kl": conversion.kl,
    }


def _print(checkpoint: "Checkpoint", out: Path, conversion: "Conversion") -> None:
    from hotset.cli.console import size, table
    from hotset.core.config import Way

    ways = Counter(plan.way.value if plan else "as it was" for plan in conversion.plans)
    rows = [
        ("model", checkpoint.path.name),
        ("written", f"{out.name}, {size(conversion.size)}"),
        ("layers", ", ".join(f"{count} {way}" for way, count in ways.items())),
    ]
    if conversion.changed:
        types = ", ".join(f"{old.name} as {new.name}" for old, new in conversion.changed)
        rows.append(("neurons rounded again", types))
    if any(conversion.down_error):
        rows.append(
            ("error of down, stored again", f"{max(conversion.down_error):.2%} (relative, largest layer)")
        )
    if conversion.kl is not None:
        rows.append(("KL divergence from the model", f"{conversion.kl:.6f} nats"))
    if ways[Way.DENSE.value]:
        rows.append(("next", "hotset calibrate, to choose neurons within a budget"))
    table(rows)
