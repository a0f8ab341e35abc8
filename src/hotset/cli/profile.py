"""`hotset profile`: which neurons a text makes fire."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options
from hotset.cli.outputs import check_profile_output
from hotset.cli.text import read_text
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.activations.profile import ActivationProfile
    from hotset.formats.checkpoint import Checkpoint

_WINDOW = 512


def profile(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|PROFILE",
            help="A model, as for other commands; or, without --text and --import, a profile to show.",
            show_default=False,
        ),
    ] = None,
    *,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="UTF-8 text to read, two windows or more (--context); repeat it for a mix, read in turn."
        ),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="DIR", help="Take PowerInfer's activation_*.pt files instead of a text."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to write the profile; NAME.profile.npz here if not given."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the profile: pictures and a page (index.html).")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Read only so many tokens; with --import, those that were counted."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "-c", "--context", min=8, help="Tokens in a window; 512 if not given.", show_default=False
        ),
    ] = None,
    threads: options.Threads = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Count how often each neuron fires, or each expert of a mixture is selected, on a text.

    After an interruption, run it again to continue.

    `hotset convert` sorts a model's neurons by the profile.
    """
    if text and import_from:
        raise RequestError("--text and --import: expected one of them")
    if output:
        check_profile_output(output, [Path(model)] if model else ())
    if report:
        from hotset.draw.profile_page import check_report

        check_report(report, text or ())
    if text:
        made, path = _from_text(model, override, text, output, tokens, context, threads)
    elif import_from:
        _refuse_without_text({"--context": context, "--threads": threads})
        made, path = _from_powerinfer(model, override, import_from, output, tokens)
    else:
        unused = {"--output": output, "--tokens": tokens, "--override": override or None}
        _refuse_without_text(unused | {"--context": context, "--threads": threads})
        if model is None:
            raise RequestError("no text to profile: name a file with --text FILE")
        path = Path(model)
        made = _existing(path)
    page = None
    if report:
        from hotset.draw.profile_page import write_report

        page = write_report(made, report)
    _show(made, path, page, as_json)


def _refuse_without_text(values: dict[str, Any]) -> None:
    """Raise `RequestError` for options, by name, that were given though only reading a text needs them."""
    if given := ", ".join(name for name, value in values.items() if value is not None):
        raise RequestError(f"no text to profile for {given}: name a file with --text FILE")


def _from_text(
    model: str | None,
    override: list[str] | None,
    text: list[Path],
    output: Path | None,
    tokens: int | None,
    context: int | None,
    threads: int | None,
) -> "tuple[ActivationProfile, Path]":
    texts = [read_text(path) for path in text]

    from hotset.activations.collect import collect
    from hotset.activations.corpus import corpus_windows
    from hotset.activations.profile import fingerprint
    from hotset.cli.console import notes, progress
    from hotset.core.config import Way
    from hotset.serve.load import load_model, open_model
    from hotset.serve.loaded import check_context

    checkpoint = open_model(model, options.overrides(override))
    path = _output(output, checkpoint, text)
    partial = path.with_name(path.name + ".partial")
    check_profile_output(partial, [path])
    window = check_context(checkpoint.config, context or min(_WINDOW, checkpoint.config.context_length))
    with progress("Loading") as loading:
        loaded = load_model(checkpoint, threads=threads, ffn=Way.DENSE, context=window, progress=loading)
    notes(loaded)
    windows = corpus_windows(loaded.tokenizer, texts, window, tokens)
    if len(windows) < 2:
        raise RequestError(
            f"the text has {len(windows)} windows of {window} tokens: expected two or more; give more text "
            "(--text, --tokens) or smaller windows (--context)"
        )
    with progress("Profiling") as profiling:
        made = collect(
            loaded.transformer,
            windows,
            model=checkpoint.path.absolute().name,
            corpus=", ".join(file.name for file in text),
            fingerprint=fingerprint(checkpoint),
            partial=partial,
            count_fired=True,
            progress=profiling,
        )
    made.save(path)
    partial.unlink(missing_ok=True)
    return made, path


def _from_powerinfer(
    model: str | None, override: list[str] | None, directory: Path, output: Path | None, tokens: int | None
) -> "tuple[ActivationProfile, Path]":
    from hotset.activations.powerinfer import import_profile
    from hotset.serve.load import open_model

    checkpoint = open_model(model, options.overrides(override))
    path = _output(output, checkpoint, directory.iterdir() if directory.is_dir() else ())
    made = import_profile(directory, checkpoint, tokens)
    made.save(path)
    return made, path


def _existing(path: Path) -> "ActivationProfile":
    from hotset.activations.profile import load_profile
    from hotset.core.errors import HotsetError

    try:
        return load_profile(path)
    except HotsetError as error:
        raise HotsetError(f"{error}; to profile a model, name a text with --text FILE") from None


def _output(output: Path | None, checkpoint: "Checkpoint", reading: Iterable[Path]) -> Path:
    """Where the profile goes; checked before the work begins."""
    path = output or Path(f"{checkpoint.path.absolute().name.removesuffix('.gguf')}.profile.npz")
    check_profile_output(path, [*checkpoint.files(), *reading])
    return path


def _show(made: "ActivationProfile", path: Path, page: Path | None, as_json: bool) -> None:
    from hotset.activations.summary import summarise

    layers = summarise(made)
    if as_json:
        facts: dict[str, Any] = {
            "profile": str(path),
            "report": None if page is None else str(page),
            "model": made.model,
            "model_hash": made.model_hash,
            "activation": made.activation.value,
            "units": made.units,
            "corpus": made.corpus,
            "corpus_hash": made.corpus_hash,
            "tokens": made.tokens,
            "window": made.window,
            "skipped": made.skipped,
            "layers": [asdict(layer) for layer in layers],
        }
        print(json.dumps(facts, indent=2))
        return
    from hotset.cli.console import table

    table(
        [
            ("profile", str(path)),
            ("of", f"{made.model}, {made.activation.value}"),
            ("text", f"{made.corpus}, {made.tokens} tokens" if made.tokens else made.corpus),
            *([("report", str(page))] if page else []),
        ]
    )
    print()
    firing = "experts selected" if made.units == "experts" else "neurons firing"
    inside = made.inside is not None
    table(
        [
            (
                str(i),
                f"{layer.density:.1%}",
                *([f"{layer.inside:.1%}"] if inside else []),
                f"{layer.hot_share:.1%}",
                "-" if layer.correlation is None else f"{layer.correlation:.3f}",
                "-" if layer.overlap is None else f"{layer.overlap:.1%}",
            )
            for i, layer in enumerate(layers)
        ],
        header=(
            "layer",
            firing,
            *(["neurons firing inside"] if inside else []),
            f"{made.units} for 80%",
            "halves correlate",
            "same top 20%",
        ),
    )
