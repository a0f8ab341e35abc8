"""`hotset eval`: how well a model predicts a text, or answers multiple-choice questions."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options
from hotset.cli.text import read_text
from hotset.core.config import Way
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.measure.choices import Scores
    from hotset.measure.perplexity import Evaluation
    from hotset.serve.loaded import Model

_RULES = {
    "acc": "the likeliest choice is right",
    "acc_norm": "the likeliest for its characters",
    "acc_bytes": "the likeliest for its bytes",
}


def evaluate(
    model: options.Model = None,
    *,
    text: Annotated[list[Path] | None, typer.Option(help="UTF-8 text to predict; may be repeated.")] = None,
    choices: Annotated[
        Path | None,
        typer.Option(
            metavar="JSONL",
            help='Questions to answer: {"query": "…", "choices": ["…", "…"], "gold": 0} a line.',
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Reference model to compare with; on a text, of the same vocabulary."
        ),
    ] = None,
    against_dense: Annotated[
        bool, typer.Option("--against-dense", help="Compare with the same model, all its neurons computed.")
    ] = False,
    ffn: options.Neurons = None,
    tokens: Annotated[int | None, typer.Option(min=4, help="Read only so many tokens of the text.")] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--context",
            min=4,
            help="Tokens in a window, 512 if not given; or the longest question's.",
            show_default=False,
        ),
    ] = None,
    kv_type: options.KVType = "f16",
    threads: options.Threads = None,
    vram: options.Vram = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Perplexity of a text, or the accuracy of multiple choice; and how far a second model is.

    The text is read in windows, and the second half of each counts: the figures compare with llama.cpp's.
    Choices count by their log-likelihood after the query, as lm-evaluation-harness defines it.
    """
    if against is not None and against_dense:
        raise RequestError("--against and --against-dense: expected one of them")
    if choices and (text or tokens):
        raise RequestError("--choices goes with neither --text nor --tokens")
    if not (text or choices):
        raise RequestError(
            "nothing to predict: name a text with --text FILE, or questions with --choices FILE"
        )
    written = "\n".join(read_text(path) for path in ([choices] if choices else text or []))

    from hotset.cli.console import notes, progress
    from hotset.measure.choices import read_questions, score
    from hotset.measure.perplexity import DEFAULT_WINDOW, tokenize
    from hotset.measure.perplexity import evaluate as evaluate_model
    from hotset.serve.load import load_model, open_model

    questions = read_questions(written, str(choices)) if choices else []
    checkpoint = open_model(model, options.overrides(override))
    room = context if choices else context or DEFAULT_WINDOW
    with progress("Loading") as loading:
        loaded = load_model(
            checkpoint,
            threads=threads,
            ffn=ffn,
            vram=options.vram_bytes(vram),
            context=room,
            kv_type=kv_type,
            progress=loading,
        )
        reference = None
        if against_dense:
            reference = load_model(
                checkpoint, threads=threads, ffn=Way.DENSE, context=room, kv_type=kv_type, progress=loading
            )
        elif against is not None:
            reference = load_model(against, threads=threads, context=room, kv_type=kv_type, progress=loading)
    notes(loaded)
    if choices:
        scores = []
        for reader in [loaded] if reference is None else [loaded, reference]:
            with progress("Answering") as answering:
                scores.append(score(reader, questions, context=context, kv_type=kv_type, progress=answering))
        _show_choices(loaded, reference, scores, as_json)
        return
    ids = tokenize(written, loaded, reference, limit=tokens)
    with progress("Evaluating") as evaluating:
        result = evaluate_model(
            loaded, ids, against=reference, window=context, kv_type=kv_type, progress=evaluating
        )
    _show_text(loaded, reference, result, as_json)


def _facts(loaded: "Model", reference: "Model | None") -> dict[str, Any]:
    return {"model": str(loaded.path), "against": None if reference is None else str(reference.path)}


def _show_text(loaded: "Model", reference: "Model | None", result: "Evaluation", as_json: bool) -> None:
    from hotset.cli.console import table

    divergence = result.divergence
    if as_json:
        print(
            json.dumps(
                _facts(loaded, reference)
                | {
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


def _show_choices(loaded: "Model", reference: "Model | None", scores: "list[Scores]", as_json: bool) -> None:
    from hotset.cli.console import table

    result = scores[0]
    same = [result.same_choice(other) for other in scores[1:]]
    if as_json:
        facts = _facts(loaded, reference) | {"questions": len(result.log_likelihoods)} | _accuracies(result)
        facts["density"] = result.density
        for other, share in zip(scores[1:], same, strict=True):
            facts["reference"] = _accuracies(other)
            facts["same_choice"] = share
        print(json.dumps(facts, indent=2))
        return
    rows = [("model", loaded.path.name), ("questions", str(len(result.log_likelihoods)))]
    if result.density is not None:
        rows.append(("neurons read", f"{result.density:.1%}"))
    if reference:
        rows += [("against", reference.path.name), ("same likeliest choice", f"{same[0]:.1%}")]
    table(rows)
    print()
    columns = ["model", *(["against"] if reference else [])]
    table(
        [
            (f"{name}: {rule}", *(_with_error(each, getattr(each, name)) for each in scores))
            for name, rule in _RULES.items()
        ],
        header=("", *columns),
    )


def _accuracies(scores: "Scores") -> dict[str, float]:
    found = {name: getattr(scores, name) for name in _RULES}
    return found | {f"{name}_stderr": scores.error(accuracy) for name, accuracy in found.items()}


def _with_error(scores: "Scores", accuracy: float) -> str:
    return f"{accuracy:.1%} ± {scores.error(accuracy):.1%}"
