"""`hotset serve`: answer over HTTP."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli import options
from hotset.core.errors import HotsetError, RequestError

if TYPE_CHECKING:
    from hotset.formats.overrides import Overrides
    from hotset.serve.engine import Engine
    from hotset.server.models import Known

_PARTS = ("starlette", "uvicorn", "llguidance", "prometheus_client")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/]+")
_NAMED = re.compile(r"([\w][\w.:/-]*)=(.+)")


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="Files, directories or hf:org/repo:Q4_K_M; the demo model if none. The first is loaded at "
            "once, others when asked for by name.",
            show_default=False,
        ),
    ] = None,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")
    ] = 8080,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Answer only requests with this key; may be repeated.",
            envvar="HOTSET_API_KEY",
            show_default=False,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="A site whose pages may ask, such as http://localhost:3000; *: any.", show_default=False
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests computed at the same time: 8 if not given, 1 with --vram.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--context",
            min=0,
            help="Tokens of context of each request; 0: what the model was trained for; if not given that, "
            "at most 4096.",
            show_default=False,
        ),
    ] = None,
    kv_type: options.KVType = "f16",
    cache_ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for keys and values, of running requests and kept for later ones, such as 4GiB; "
            "half of what is free, if not given, or less; with --vram at most --parallel contexts.",
            show_default=False,
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for all models; what is free, if not given. For one more, those unused for "
            "longest go.",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    vram: options.Vram = None,
    speculate: options.Speculate = True,
    keep_alive: Annotated[
        float,
        typer.Option(min=0, help="Seconds after which a silent stream says that it is alive; 0: never."),
    ] = 15.0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No line for each request.")] = False,
) -> None:
    """Answer over HTTP as the APIs of OpenAI, Anthropic and Ollama (docs/guide/serve.md)."""
    check_extra("serve")
    import asyncio

    from hotset.serve.engine import Engine
    from hotset.serve.load import check_fits, check_gpu, open_model
    from hotset.server.app import Limits, Server
    from hotset.server.models import Models
    from hotset.server.run import bind, serve

    if not all(api_key or ()):
        raise RequestError("--api-key is empty: expected a key, without which nobody is answered")
    room = None if cache_ram is None else options.parse_size(cache_ram)
    budget = None if ram is None else options.parse_size(ram)
    gpu = options.vram_bytes(vram)
    if gpu:
        check_gpu()

    def load(known: "Known") -> "Engine":
        return Engine.load(
            known.source,
            threads=threads,
            context=context,
            kv_type=kv_type,
            vram=gpu,
            speculate=speculate,
            parallel=parallel,
            kv_room=room,
        )

    known = [known_model(model, context, kv_type, room) for model in models or (None,)]
    if twice := {model.name for model in known if [other.name for other in known].count(model.name) > 1}:
        raise RequestError(f"two models are named {min(twice)}: give names as NAME=MODEL")
    if budget is not None and (large := [model for model in known if model.bytes > budget]):
        raise RequestError(
            f"{large[0].name} takes {large[0].bytes / 1e6:.0f} MB with keys and values, but all models may "
            f"take {budget / 1e6:.0f} MB: give more (--ram) or a smaller --cache-ram or --context"
        )
    check_fits(open_model(known[0].source), context, kv_type, vram=gpu, parallel=parallel or 1)
    for origin in cors_origin or ():
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise RequestError(f"--cors-origin {origin}: expected a site such as http://localhost:3000, or *")
    bound = bind(host, port)
    address = f"[{host}]" if ":" in host else host
    _log(quiet)
    print(f"hotset: http://{address}:{bound.getsockname()[1]} (Ctrl-C stops)", file=sys.stderr)
    server = Server(
        Models(known, load, budget),
        Limits(keep_alive=keep_alive or None),
    )
    asyncio.run(
        serve(
            server,
            bound,
            keys=tuple(api_key or ()),
            host=host,
            origins=tuple(cors_origin or ()),
        )
    )


def check_extra(command: str) -> None:
    """Raise `HotsetError` that says what to install, where a package of the extra is missing."""
    if missing := [part for part in _PARTS if find_spec(part) is None]:
        raise HotsetError(f"hotset {command} needs {', '.join(missing)}: pip install 'hotset[serve]'")


def known_model(
    model: str | None,
    context: int | None,
    kv_type: str,
    room: int | None,
    overrides: "Overrides | None" = None,
) -> "Known":
    """A model's name and size, by the headers of its file."""
    from hotset.model.reading import traffic
    from hotset.serve.load import open_model
    from hotset.serve.room import check_room
    from hotset.server.models import Known

    named = _NAMED.fullmatch(model) if model and not Path(model).exists() else None
    if model and "=" in model and not named and not Path(model).exists():
        raise RequestError(
            f"{model} is no file and no NAME=MODEL: names have letters, digits, dots, colons, slashes, "
            "dashes and underscores"
        )
    name, source = (named[1], named[2]) if named else (None, model)
    checkpoint = open_model(source, overrides)
    config = checkpoint.config
    keys_and_values = max(room or 0, check_room(config, context, kv_type, room))
    weights = traffic(checkpoint).weights
    path = checkpoint.path
    return Known(
        name
        or (
            source.removeprefix("hf:")
            if source and source.startswith("hf:")
            else path.name.removesuffix(".gguf")
        ),
        str(path),
        weights + keys_and_values,
        config.context_length,
        config.architecture,
        weights,
    )


def _log(quiet: bool) -> None:
    """Lines of the server on stderr, with the time."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("hotset.access", "hotset.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.WARNING if quiet or name == "uvicorn.error" else logging.INFO)
