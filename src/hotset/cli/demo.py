"""`hotset demo`: the whole idea on one model, told as a page."""

from pathlib import Path
from typing import Annotated

import typer

from hotset.cli import options


def demo(
    model: options.Model = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path(
        "hotset-demo.html"
    ),
    threads: options.Threads = None,
    override: options.Override = None,
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
    ratio = found.sparse.over(found.dense).median
    table(
        [
            ("all neurons", f"{found.dense.median:.1f} tokens/s"),
            ("those that are not zero", f"{found.sparse.median:.1f} tokens/s, {ratio:.2f} times"),
            ("page", str(output)),
        ]
    )
