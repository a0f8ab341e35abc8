"""`hotset list`, `hotset pull`, `hotset rm`: the Hugging Face hub's models, in its cache on this computer."""

import json
from typing import Annotated

import typer

from hotset.cli import options

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="hf:org/repo, with @revision, and :Q4_K_M or :file.gguf, or the hub's address; hf: may be left "
        "out.",
    ),
]


def list_models(*, as_json: options.AsJSON = False) -> None:
    """List the models that were downloaded, by the names that other commands take."""
    from hotset.cli.console import size, table
    from hotset.formats.hub_cache import cache_folder, cached_models

    models = cached_models()
    if as_json:
        facts = [
            {
                "name": model.name,
                "path": str(model.path),
                "bytes": model.bytes,
                "modified": model.modified.isoformat(timespec="seconds"),
                "complete": model.complete,
            }
            for model in models
        ]
        print(json.dumps(facts, indent=2))
    elif models:
        table(
            [
                (
                    model.name + ("" if model.complete else " (incomplete)"),
                    size(model.bytes),
                    f"{model.modified.astimezone():%Y-%m-%d}",
                )
                for model in models
            ],
            header=("model", "size", "downloaded"),
        )
    else:
        print(f"no models in {cache_folder()}: hotset pull hf:org/repo:Q4_K_M downloads one")


def pull(name: Name, *, as_json: options.AsJSON = False) -> None:
    """Download a model; after an interruption, run it again to continue."""
    from hotset.cli.console import size, table
    from hotset.formats.hub import Hub
    from hotset.formats.hub_cache import cached_models
    from hotset.formats.hub_name import parse_hub_name

    path = Hub().locate(name)
    named = str(parse_hub_name(name))
    nbytes = sum(model.bytes for model in cached_models() if model.path == path)
    if as_json:
        print(json.dumps({"name": named, "path": str(path), "bytes": nbytes}, indent=2))
    else:
        table([("model", named), ("path", str(path)), ("size", size(nbytes))])


def remove(name: Name, *, as_json: options.AsJSON = False) -> None:
    """Remove a downloaded model: a file, a revision or, by hf:org/repo alone, all of a repository."""
    from hotset.cli.console import size
    from hotset.formats.hub_cache import remove as remove_model
    from hotset.formats.hub_name import parse_hub_name

    named = parse_hub_name(name)
    freed = remove_model(named)
    if as_json:
        print(json.dumps({"name": str(named), "freed_bytes": freed}, indent=2))
    else:
        print(f"removed {named}: {size(freed)} are free now")
