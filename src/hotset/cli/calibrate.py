"""`hotset calibrate`: cut-offs for SiLU and GELU, within a budget of quality."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli import options
from hotset.cli import study as shared
from hotset.core.config import FFNPlan, Score, Way

if TYPE_CHECKING:
    from hotset.sparsify.calibrate import Calibration
    from hotset.sparsify.threshold import Found


def calibrate(
    model: options.Model = None,
    *,
    profile: shared.Profile,
    text: shared.Text,
    out: shared.Out,
    budget: Annotated[
        str, typer.Option(help="Quality that may be lost: ppl=1% of the perplexity, or kl=0.01 nats.")
    ] = "ppl=1%",
    held_out: shared.HeldOut = None,
    tokens: shared.Tokens = 8192,
    ffn: shared.FFN = None,
    threads: options.Threads = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Find the fastest cut-offs within a budget on held-out text, and store the model by neuron with them.

    A neuron is skipped where its contribution is below its layer's cut-off. Prompts are computed densely; a
    layer in which skipping is not clearly faster on this computer stays dense. If all do, nothing is written.
    """
    from hotset.cli.console import progress
    from hotset.convert.by_neuron import convert
    from hotset.core.limits import available_cores
    from hotset.sparsify.calibrate import calibrate as calibrate_model
    from hotset.sparsify.threshold import Budget

    allowed = Budget.parse(budget)
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
        plan=FFNPlan(Way.THRESHOLD, Score.DOWN),
    ) as opened:
        calibration = calibrate_model(opened.study, opened.windows, progress)
        found = calibration.search(allowed, progress)
        gains = any(found.plans)
        if gains:
            with progress("Writing") as writing:
                convert(
                    opened.checkpoint,
                    out,
                    opened.profile,
                    found.plans,
                    ffn_type=opened.ffn_type,
                    provenance={"budget": budget, "held_out_kl": found.quality.kl},
                    threads=threads or available_cores(),
                    progress=writing,
                )
    facts = {
        "model": str(opened.checkpoint.path),
        "out": str(out) if gains else None,
        "budget": budget,
    }
    facts |= _facts(calibration, found)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _facts(calibration: "Calibration", found: "Found") -> dict[str, Any]:
    dense = calibration.trial.dense
    dense_ms = sum(calibration.dense_ms)
    return {
        "predictions": calibration.trial.predictions,
        "dense": asdict(dense),
        "quality": asdict(found.quality),
        "perplexity_over_dense": found.quality.perplexity / dense.perplexity,
        "density": sum(found.densities) / len(found.densities),
        "ffn_dense_ms": dense_ms,
        "ffn_ms": found.ms(calibration.dense_ms),
        "layers": [
            {
                "way": level.plan.way.value if level else "dense",
                "score": level.plan.score.value if level and level.plan.score else "",
                "cutoff": level.plan.cutoff if level else 0.0,
                "density": density,
                "dense_ms": ms,
                "ms": level.ms if level else ms,
            }
            for level, density, ms in zip(found.levels, found.densities, calibration.dense_ms, strict=True)
        ],
    }


def _print(facts: dict[str, Any]) -> None:
    from hotset.cli.console import table

    table(
        [
            (
                str(number),
                layer["score"] or layer["way"],
                f"{layer['cutoff']:.4g}" if layer["score"] else "",
                f"{layer['density']:.1%}",
                f"{layer['dense_ms']:.3f}",
                f"{layer['ms']:.3f}",
            )
            for number, layer in enumerate(facts["layers"])
        ],
        header=("layer", "score", "cut-off", "neurons read", "dense ms", "ms"),
    )
    print()
    table(
        [
            ("budget", facts["budget"]),
            ("perplexity over dense, held-out", f"{facts['perplexity_over_dense']:.4f}"),
            ("KL divergence from dense", f"{facts['quality']['kl']:.5f} nats"),
            ("neurons read", f"{facts['density']:.1%}"),
            ("FFNs, one token", f"{facts['ffn_ms']:.2f} ms, dense {facts['ffn_dense_ms']:.2f} ms"),
            ("held-out predictions", str(facts["predictions"])),
            ("written", facts["out"] or f"nothing, for {shared.NO_GAIN}; a larger --budget may find some"),
        ]
    )
