"""`hotset eval`: how well a model predicts a text."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from hotset.cli import options
from hotset.cli.text import read_text
from hotset.core.config import Way
from hotset.core.errors import RequestError


def evaluate(
    model: options.Model = None,
    *,
    text: Annotated[list[Path] | None, typer.Option(help="UTF-8 text to predict; may be repeated.")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Reference model of the same vocabulary to compare with."),
    ] = None,
    against_dense: Annotated[
        bool, typer.Option("--against-dense", help="Compare with the same model, all its neurons computed.")
    ] = False,
    ffn: options.Neurons = None,
    tokens: Annotated[int | None, typer.Option(min=4, help="Read only so many tokens of the text.")] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "-c", "--context", min=4, help="Tokens in a window; 512 if not given.", show_default=False
        ),
    ] = None,
    kv_type: options.KVType = "f16",
    threads: options.Threads = None,
    vram: options.Vram = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Perplexity of a text, and the divergence from a second model.

    The text is read in windows, and the second half of each counts: the figures compare with llama.cpp's.
    """
    if not text:
        raise RequestError("no text to predict: name a file with --text FILE")
    if against and against_dense:
        raise RequestError("--against and --against-dense: expected one of them")
    written = "\n".join(read_text(path) for path in text)

    from hotset.cli.console import notes, progress, table
    from hotset.measure.perplexity import DEFAULT_WINDOW, tokenize
    from hotset.measure.perplexity import evaluate as evaluate_model
    from hotset.serve.load import load_model, open_model

    checkpoint = open_model(model, options.overrides(override))
    window = context or DEFAULT_WINDOW
    with progress("Loading") as loading:
        loaded = load_model(
            checkpoint,
            threads=threads,
            ffn=ffn,
            vram=options.vram_bytes(vram),
            context=window,
            kv_type=kv_type,
            progress=loading,
        )
        reference = None
        if against_dense:
            reference = load_model(
                checkpoint, threads=threads, ffn=Way.DENSE, context=window, kv_type=kv_type, progress=loading
            )
        elif against:
            reference = load_model(
                against, threads=threads, context=window, kv_type=kv_type, progress=loading
            )
    notes(loaded)
    ids = tokenize(written, loaded, reference, limit=tokens)
    with progress("Evaluating") as evaluating:
        result = evaluate_model(
            loaded, ids, against=reference, window=context, kv_type=kv_type, progress=evaluating
        )
    divergence = result.divergence
    if as_json:
        print(
            json.dumps(
                {
                    "model": str(loaded.path),
                    "against": None if reference is None else str(reference.path),
                    "tokens": result.tokens,
                    "window": result.window,
                    "perplexity": result.perplexity,
                    "density": result.density,
                    **(dataclasses.asdict(divergence) if divergence else {}),
                },
                indent=2,
            )
        )
        return
    rows = [
        ("model", loaded.path.name),
        ("predictions", f"{result.tokens} in windows of {result.window} tokens"),
        ("perplexity", f"{result.perplexity:.4f}"),
    ]
    if result.density is not None:
        rows.append(("neurons read", f"{result.density:.1%}"))
    if reference and divergence:
        rows += [
            ("against", reference.path.name),
            ("its perplexity", f"{divergence.reference_perplexity:.4f}"),
            ("KL divergence from it, mean", f"{divergence.kl_mean:.6f} nats"),
            ("KL divergence from it, largest", f"{divergence.kl_max:.6f} nats"),
            ("same most likely token", f"{divergence.top1_agreement:.2%}"),
            ("same greedy text", f"the first {divergence.greedy_same} of {divergence.greedy_tokens} tokens"),
        ]
    table(rows)
