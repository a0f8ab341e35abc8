"""`hotset batch`: answer the lines of a file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hotset.cli import options
from hotset.cli.serve import check_extra, known_model
from hotset.core.errors import RequestError


def batch(
    requests: Annotated[
        Path, typer.Argument(metavar="IN.jsonl", help="Requests, a line each, as OpenAI's batches have them.")
    ],
    *,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT.jsonl", help="Answers; those that are there are kept."),
    ],
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="The model; the demo model if not given.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Requests computed at the same time.")] = 8,
    context: options.Context = None,
    kv_type: options.KVType = "f16",
    threads: options.Threads = None,
    vram: options.Vram = None,
    override: options.Override = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, only errors.")] = False,
) -> None:
    """Answer the lines of a file; interrupted, it goes on where it was when run again."""
    check_extra("batch")
    import asyncio

    from hotset.cli.console import progress
    from hotset.serve.engine import Engine
    from hotset.server.app import Server
    from hotset.server.batch import answer_lines, read_lines, resume
    from hotset.server.models import Models

    if output.exists() and output.samefile(requests):
        raise RequestError(f"{output} is the input: name another file (-o)")
    lines = read_lines(requests)
    done = resume(output)
    left = {id: line for id, line in lines.items() if id not in done}
    gpu, overrides = options.vram_bytes(vram), options.overrides(override)

    def load(known: object) -> Engine:
        return Engine.load(
            model,
            threads=threads,
            context=context,
            kv_type=kv_type,
            vram=gpu,
            parallel=parallel,
            overrides=overrides,
        )

    server = Server(Models([known_model(model, context, kv_type, None, overrides)], load))
    with output.open("ab") as out, progress("Answering") as bar:
        failed = asyncio.run(answer_lines(server, left, out, parallel, None if quiet else bar))
    if not quiet:
        kept = f", {len(done)} were there" if done else ""
        print(f"{len(left)} answered{kept}, {failed} of them with an error: {output}", file=sys.stderr)
