"""`hotset batch`: answer the lines of a file."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from hotset.cli import options
from hotset.cli.serve import check_extra, known_model
from hotset.core.errors import HotsetError, RequestError


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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Answer by a Ray cluster: its address, auto for the one that this machine belongs to, local "
            "for processes of this machine.",
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Models in the cluster; one a machine if not given.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, only errors.")] = False,
) -> None:
    """Answer the lines of a file; after an interruption, run it again to continue."""
    check_extra("batch")
    if ray == "":
        raise RequestError("--ray is empty: expected an address, auto or local")
    if ray and find_spec("ray") is None:
        raise HotsetError("hotset batch --ray needs ray: pip install 'hotset[ray]'")
    if replicas and not ray:
        raise RequestError("--replicas belongs to a cluster: name one (--ray)")
    import asyncio

    from hotset.cli.console import progress
    from hotset.formats.output import check_output
    from hotset.serve.engine import Engine
    from hotset.server.app import Server
    from hotset.server.batch import answer_lines, read_lines, resume
    from hotset.server.models import Models

    lines = read_lines(requests)
    check_output(output, [requests])
    kept = resume(output)
    left = {id: line for id, line in lines.items() if id not in kept}
    overrides = options.overrides(override)
    known = known_model(model, context, kv_type, None, overrides)
    load: dict[str, Any] = {
        "threads": threads,
        "context": context,
        "kv_type": kv_type,
        "vram": options.vram_bytes(vram),
        "parallel": parallel,
        "queue": sys.maxsize,  # lines may ask for many answers each, and none of them is refused
        "overrides": overrides,
    }
    # Loaded first: else each line would be answered by what is wrong with the model.
    engine = Engine.load(model, **load) if left and not ray else None
    try:
        out = output.open("ab", buffering=0)
    except OSError as error:
        raise HotsetError(f"{output}: cannot be written: {error.strerror}") from None
    with out, progress("Answering") as bar:
        told = None if quiet else bar
        failed = 0
        if engine:
            server = Server(Models([known], lambda _: engine))
            failed = asyncio.run(answer_lines(server, left, out, parallel, told))
        elif ray and left:
            from hotset.cluster.batch import answer_lines as answer_by_cluster

            known = replace(known, source=model)
            failed = answer_by_cluster(left, out, known, load, address=ray, replicas=replicas, progress=told)
    if not quiet:
        wrong = sum(not answered for answered in kept.values())
        there = f"; {len(kept)} kept, {wrong} of them with an error" if kept else ""
        print(f"{len(left)} answered, {failed} of them with an error{there}: {output}", file=sys.stderr)
