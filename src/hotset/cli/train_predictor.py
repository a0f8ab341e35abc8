"""`hotset train-predictor`: predictors of the neurons that fire, chosen layer by layer."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options
from hotset.cli import study as shared
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.sparsify.choice import Choice
    from hotset.sparsify.train import Training

_COLUMNS = ("kB", "recall", "precision", "kept", "chosen", "ms")


def train_predictor(
    model: options.Model = None,
    *,
    profile: shared.Profile,
    text: shared.Text,
    out: shared.Out,
    held_out: shared.HeldOut = None,
    target: Annotated[
        float, typer.Option(help="Share of the activation that the chosen neurons keep on held-out text.")
    ] = 0.99,
    budget: Annotated[
        str, typer.Option(help="Largest low-rank predictor, as a share of the FFN's bytes.")
    ] = "10%",
    tokens: shared.Tokens = 16384,
    ffn: shared.FFN = None,
    threads: options.Threads = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Find a predictor for every layer and store the model by neuron with the fastest that keep the target.

    Copies of the gate in 4 and 2 bits, low-rank predictors and, for ReLU, computing the gate itself are timed
    on this computer; where none is faster than the dense FFN, that stays; if it stays everywhere, nothing is
    written. Needs the extra `train`.
    """
    if not 0.5 <= target < 1:
        raise RequestError(f"target is {target:g}: expected 0.5 to under 1, such as 0.99 (--target)")
    share = _share(budget)

    from hotset.cli.console import progress
    from hotset.convert.by_neuron import convert
    from hotset.core.limits import available_cores
    from hotset.sparsify.low_rank import import_torch
    from hotset.sparsify.train import train_predictors

    import_torch()
    with shared.opened(
        model,
        override=override,
        profile=profile,
        text=text,
        held_out=held_out,
        tokens=tokens,
        out=out,
        ffn=ffn,
        threads=threads,
        plan=FFNPlan(Way.PREDICTOR, Score.GATE_Q4),
    ) as opened:
        training = train_predictors(opened.study, opened.windows, target=target, budget=share, stage=progress)
        gains = any(training.plans)
        if gains:
            with progress("Writing") as writing:
                convert(
                    opened.checkpoint,
                    out,
                    opened.profile,
                    training.plans,
                    training.predictors(opened.study),
                    ffn_type=opened.ffn_type,
                    provenance={"predictor_target": target, "predictor_tokens": tokens},
                    threads=threads or available_cores(),
                    progress=writing,
                )
    if as_json:
        facts = {"model": str(opened.checkpoint.path), "out": str(out) if gains else None}
        print(json.dumps(facts | _facts(training), indent=2))
    else:
        _print(training)
        print(f"\nwritten: {out if gains else f'nothing, for {shared.NO_GAIN}'}")


def _share(budget: str) -> float:
    try:
        share = float(budget.removesuffix("%")) / (100 if budget.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise RequestError(f"budget is {budget!r}: expected 0% to 100%, such as 10% (--budget)")
    return share


def _facts(training: "Training") -> dict[str, Any]:
    return {
        "predictions": training.predictions,
        "dense": asdict(training.dense),
        "qualities": {name: asdict(quality) for name, quality in training.qualities.items()},
        "layers": [
            {
                "dense_ms": ms,
                "chosen": best.name if best else "dense",
                "candidates": [_candidate(choice) for choice in choices],
            }
            for choices, best, ms in zip(training.choices, training.best, training.dense_ms, strict=True)
        ],
    }


def _candidate(choice: "Choice") -> dict[str, Any]:
    return {
        "name": choice.name,
        "rank": choice.rank,
        "cutoff": choice.plan.cutoff,
        "bytes": choice.predictor_bytes,
        "recall": choice.recall,
        "precision": choice.precision,
        "kept": choice.kept,
        "chosen": choice.chosen,
        "read": choice.read,
        "ms": choice.ms,
        "kl": choice.kl,
    }


def _print(training: "Training") -> None:
    from hotset.cli.console import table

    rows: list[tuple[str, ...]] = []
    for layer, (choices, best, ms) in enumerate(
        zip(training.choices, training.best, training.dense_ms, strict=True)
    ):
        rows.append((str(layer), "dense" + " *" * (best is None), "", "", "", "", "100.0%", f"{ms:.3f}"))
        rows += [_row(choice, choice is best) for choice in choices]
    table(
        rows,
        header=("layer", "choice (* taken)", *_COLUMNS),
    )
    print()
    dense = training.dense.perplexity
    kinds: list[tuple[str, ...]] = [
        ("dense", "", "", "", "", "100.0%", f"{sum(training.dense_ms):.3f}", f"{dense:.4f}", "", "")
    ]
    for name, q in training.qualities.items():
        quality = f"{q.perplexity:.4f}", f"{q.perplexity / dense:.4f}", f"{q.kl:.5f}"
        kinds.append((name, *_mean(training.in_all_layers(name), training.dense_ms), *quality))
    table(
        kinds,
        header=("in all layers", *_COLUMNS, "perplexity", "over dense", "KL"),
    )
    taken = Counter(best.name if best else "dense" for best in training.best)
    print()
    table(
        [
            ("taken", ", ".join(f"{count} {name}" for name, count in taken.most_common())),
            ("held-out predictions", str(training.predictions)),
        ]
    )


def _row(choice: "Choice", taken: bool) -> tuple[str, ...]:
    name = choice.name + (f" {choice.rank}" if choice.rank else "") + " *" * taken
    if choice.kl is not None and not taken:
        name += f" (KL {choice.kl:.4f})"
    return "", name, *_mean([choice], [choice.ms])


def _mean(choices: Sequence["Choice | None"], dense_ms: Sequence[float]) -> tuple[str, ...]:
    """The columns for all layers: milliseconds are added up, the others are means; None is dense."""
    there = [choice for choice in choices if choice]
    dense = len(choices) - len(there)

    def mean(name: str) -> float:
        return float(sum(getattr(choice, name) for choice in there) + dense) / len(choices)

    ms = sum(choice.ms if choice else ms for choice, ms in zip(choices, dense_ms, strict=True))
    return (
        f"{sum(choice.predictor_bytes for choice in there) / len(choices) / 1e3:.0f}",
        f"{mean('recall'):.1%}",
        f"{mean('precision'):.1%}",
        f"{mean('kept'):.2%}",
        f"{mean('chosen'):.1%}",
        f"{ms:.3f}",
    )
