"""`hotset demo`: the whole idea on one model, told as a page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options

if TYPE_CHECKING:
    from hotset.measure.demo import Demo, Predicted


def demo(
    model: options.Model = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path(
        "hotset-demo.html"
    ),
    threads: options.Threads = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """See who fires, store the model by neuron, and time it: in a few minutes, as a page with the figures."""
    from hotset.cli.console import notes, progress, table
    from hotset.draw.demo_page import is_demo_page, write_demo_page
    from hotset.draw.picture import check_drawing
    from hotset.formats.output import check_output, scratch
    from hotset.measure.demo import run_demo
    from hotset.placing.doctor import cpu_name
    from hotset.serve.load import open_model

    check_drawing()
    check_output(output, kind="page of hotset demo", replaces=is_demo_page)
    checkpoint = open_model(model, options.overrides(override))
    check_output(output, checkpoint.files())
    notes(checkpoint)
    with scratch(output) as directory:
        found = run_demo(checkpoint, directory, threads=threads, stage=progress)
    write_demo_page(found, cpu_name(), output)
    if as_json:
        print(json.dumps(_facts(found, output), indent=2))
        return
    rows = [("all neurons", f"{found.dense.median:.1f} tokens/s")]
    named = [("those that are not zero", found.sparse)]
    if isinstance(found.predicted, str):
        rows.append(("predictor", f"left out: {found.predicted}"))
    else:
        named.append(("those that predictors name", found.predicted.rate))
    for name, rate in named:
        rows.append((name, f"{rate.median:.1f} tokens/s, {rate.over(found.dense).median:.2f} times"))
    table([*rows, ("page", str(output))])


def _facts(found: "Demo", page: Path) -> dict[str, Any]:
    """What the page says in numbers; rates are tokens/s, round by round."""
    return {
        "model": found.model,
        "threads": found.threads,
        "kernels": found.level,
        "original": found.original.rounds,
        "dense": found.dense.rounds,
        "sparse": found.sparse.rounds,
        "density": found.density,
        "predicted": _predicted(found.predicted),
        "page": str(page),
    }


def _predicted(found: "Predicted | str") -> dict[str, Any] | str:
    if isinstance(found, str):
        return found
    choices = found.predictors
    return {
        "rounds": found.rate.rounds,
        "density": found.density,
        "recall": choices.mean(lambda choice: choice.recall),
        "precision": choices.mean(lambda choice: choice.precision),
        "kept": choices.mean(lambda choice: choice.kept),
        "share_of_bytes": choices.share,
        "tokens": choices.tokens,
        "kl": found.quality.divergence and found.quality.divergence.kl_mean,
    }
