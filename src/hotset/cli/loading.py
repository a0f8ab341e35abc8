"""Loading a model that is to answer, for `hotset run` and `hotset chat`."""

import sys
import time
from typing import TYPE_CHECKING

from hotset.cli import options
from hotset.core.config import Way

if TYPE_CHECKING:
    from hotset.serve.engine import Engine


def load_engine(
    model: str | None,
    *,
    threads: int | None,
    context: int | None,
    kv_type: str,
    ffn: Way | None,
    speculate: bool,
    vram: str | None,
    ram: str | None,
    override: list[str] | None,
    quiet: bool,
    verbose: bool,
) -> "Engine":
    """The model with a context, and on stderr what the user should know of it, unless that is `quiet`."""
    from hotset.cli.console import notes, progress
    from hotset.serve.engine import Engine

    start = time.perf_counter()
    with progress("Loading") as loading:
        engine = Engine.load(
            model,
            threads=threads,
            context=context,
            kv_type=kv_type,
            ffn=ffn,
            speculate=speculate,
            vram=options.vram_bytes(vram),
            ram=options.ram_bytes(ram),
            overrides=options.overrides(override),
            progress=None if quiet else loading,
        )
    if quiet:
        return engine
    notes(engine.model)
    if verbose:
        backend = engine.model.backend
        print(
            f"model: {engine.model.path}; loaded in {time.perf_counter() - start:.2f} s; "
            f"threads: {backend.threads}; kernels: {backend.level}; context: {engine.context} tokens in "
            f"{kv_type.lower()}",
            file=sys.stderr,
        )
    return engine
