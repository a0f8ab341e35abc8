"""`hotset models`: the families of models that run."""

import json
from dataclasses import asdict

from hotset.cli import options


def models(*, as_json: options.AsJSON = False) -> None:
    """List the families of models that run, and what their files call them."""
    from hotset.architectures.listing import HEADER, cells, families
    from hotset.cli.console import table

    found = families()
    if as_json:
        print(json.dumps([asdict(family) for family in found], indent=2, ensure_ascii=False))
    else:
        table([cells(family) for family in found], header=HEADER)
