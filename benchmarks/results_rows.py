"""Rows of the results' tables, read from the JSON files that the benchmarks write."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison. `low` and `high` are the extremes of `ratio` over the pairs or rounds measured."""

    claim: str
    """What its plot shows; rows with the same text share one, and '' has none."""
    test: str
    model: str
    synthetic: bool
    unit: str
    ours: float
    other: str
    theirs: float | None
    ratio: float | None
    low: float | None
    high: float | None
    date: str
    file: str


PEER = "llama.cpp"


def _peers(file: str, document: dict[str, Any]) -> Iterator[Row]:
    phases = {"decode": "Decoding, over llama.cpp", "prefill": "Prompts, over llama.cpp"}
    named = [phase for phase in phases if file.endswith(f"-{phase}.json")] or list(phases)
    for result in document["results"]:
        model, threads = result["model"], result["threads"]
        for phase in named:
            if phase not in result:
                continue
            figures, ratio = result[phase], result[phase]["ratio"]
            yield _rounds(
                document,
                file,
                phases[phase],
                f"{phase}, {figures['tokens']} tokens, {threads} thread{'s' * (threads > 1)}",
                (_name(model), model["synthetic"]),
                figures["hotset"],
                (PEER, figures[PEER]),
                ratio,
            )
        for key, test, unit, scale in (
            ("first_token_seconds", "first token from the command", "s", 1.0),
            ("peak_bytes", "peak memory", "MB", 1e6),
        ):
            if found := result.get(key):
                ours, theirs = found["hotset"] / scale, found[PEER] / scale
                yield _single(document, file, test, model, unit, ours, PEER, theirs)


def _sparse(file: str, document: dict[str, Any]) -> Iterator[Row]:
    results = document["results"]
    model = results["models"][0]
    for way in ("exact", "predictor"):
        for other, name in (("llama.cpp", PEER), ("plain", "Hotset, all neurons")):
            if way not in results or f"over {other}" not in results[way]:
                continue
            ratio = results[way][f"over {other}"]
            yield _rounds(
                document,
                file,
                f"A tenth of the neurons computed, over {name}",
                f"decode, {way}, a tenth of the neurons",
                (_name(model), model["synthetic"]),
                results[way]["decode"],
                (name, results[other]["decode"]),
                ratio,
            )


def _text_decode(file: str, document: dict[str, Any]) -> Iterator[Row]:
    results = document["results"]
    first = document["arguments"]["files"][0]
    for way, figures in results.items():
        if not isinstance(figures, dict) or "over plain" not in figures or way == "plain":
            continue
        ratio = figures["over plain"]
        yield _rounds(
            document,
            file,
            "Real text, neurons left out, over the ordinary file",
            f"real text, {way}, {figures['density']:.0%} of neurons",
            (str(first).removesuffix(".gguf"), False),
            figures["decode"],
            ("Hotset, the ordinary file", results["plain"]["decode"]),
            ratio,
        )


def _paper(file: str, document: dict[str, Any]) -> Iterator[Row]:
    results = document["results"]
    model = results["models"][0]
    engines, named = results["speeds"]["engines"], (_name(model), model["synthetic"])
    base, *steps = (name for name in engines if name != PEER)
    for step in steps:
        yield _rounds(
            document,
            file,
            "PowerInfer's ablation, as far as a CPU goes: over all neurons",
            f"decode, {step}",
            named,
            engines[step]["decode"],
            ("Hotset, all neurons", engines[base]["decode"]),
            engines[step]["decode"][f"over {base}"],
        )
    for length in document["arguments"]["length"] if PEER in engines else ():
        ours, theirs = (engines[name][str(length)] for name in (steps[-1], PEER))
        yield _rounds(
            document,
            file,
            "Answers after a prompt of 64 tokens, over llama.cpp",
            f"answer of {length} tokens, its prompt counted",
            named,
            ours,
            (PEER, theirs),
            ours[f"over {PEER}"],
        )


def _accuracy(file: str, document: dict[str, Any]) -> Iterator[Row]:
    results = document["results"]
    model = results["model"]
    test = f"KL from F32, {document['arguments']['text']}"
    ours, theirs = results["hotset"]["mean_kl"], results[PEER]["mean_kl"]
    yield _single(
        document, file, test, model, "nats", ours, PEER, theirs, "KL from the F32 weights, over llama.cpp"
    )


def _quantise(file: str, document: dict[str, Any]) -> Iterator[Row]:
    results = document["results"]
    for text, found in results["texts"].items():
        ours = found["hotset-q4_0.gguf"]["mean_kl"]
        for name, figures in found.items():
            if not name.startswith("llama.cpp"):
                continue
            yield _single(
                document,
                file,
                f"KL of Q4_0, {text.removesuffix('.txt')}",
                results["source"],
                "nats",
                ours,
                name.removesuffix(".gguf"),
                figures["mean_kl"],
                "KL of files rounded to Q4_0, over llama-quantize",
            )


def _contention(file: str, document: dict[str, Any]) -> Iterator[Row]:
    results = document["results"]
    shares = {name: results["engines"][name]["share_kept"]["median"] for name in ("hotset", PEER)}
    test = f"share of decode kept with {document['arguments']['busy']} busy processes"
    yield _single(document, file, test, results["model"], "share", shares["hotset"], PEER, shares[PEER])


def _startup(file: str, document: dict[str, Any]) -> Iterator[Row]:
    results = document["results"]
    for key, test, unit in (
        ("first_token_seconds", "first token from the command", "s"),
        ("megabytes_over", "peak memory over weights and KV cache", "MB"),
    ):
        ours, theirs = results["hotset"][key]["median"], results[PEER][key]["median"]
        yield _single(document, file, test, results["model"], unit, ours, PEER, theirs)


def _neurons(file: str, document: dict[str, Any]) -> Iterator[Row]:
    for result in document["results"]:
        found = min(result["densities"], key=lambda figures: abs(figures["density"] - 0.1))
        low, high = found["share_of_bandwidth_extremes"]
        yield Row(
            claim="Kernels over a tenth of the neurons, share of the memory bandwidth",
            test=f"kernel, a tenth of the neurons, {result['drawn']}",
            model=f"one layer {result['type']}, {'gated' if result['gated'] else 'ungated'}",
            synthetic=True,
            unit="GB/s",
            ours=found["gb_per_second"],
            other="streaming",
            theirs=found["streaming_gb_per_second"],
            ratio=found["share_of_bandwidth"],
            low=low,
            high=high,
            date=document["date"][:10],
            file=file,
        )


def _gpu_suite(file: str, document: dict[str, Any]) -> Iterator[Row]:
    kernels = document["results"]["kernels"]
    for found in kernels["kernels"]:
        yield Row(
            claim="",
            test="GPU kernel",
            model=found["kernel"],
            synthetic=True,
            unit="GB/s",
            ours=found["gb_per_second"],
            other="copy in the GPU's memory",
            theirs=kernels["copy_gb_per_second"],
            ratio=found["share_of_copy"],
            low=None,
            high=None,
            date=document["date"][:10],
            file=file,
        )


READERS: dict[str, Callable[[str, dict[str, Any]], Iterator[Row]]] = {
    "peers": _peers,
    "sparse": _sparse,
    "text_decode": _text_decode,
    "paper": _paper,
    "accuracy": _accuracy,
    "quantise": _quantise,
    "contention": _contention,
    "startup": _startup,
    "neurons": _neurons,
    "gpu_suite": _gpu_suite,
}


def _rounds(
    document: dict[str, Any],
    file: str,
    claim: str,
    test: str,
    model: tuple[str, bool],
    ours: dict[str, Any],
    other: tuple[str, dict[str, Any]],
    ratio: dict[str, Any],
) -> Row:
    """Rates in tokens/s, measured in turn; `model` is its name and whether its weights are synthetic."""
    name, theirs = other
    return Row(
        claim,
        test,
        *model,
        "tokens/s",
        ours["median"],
        name,
        theirs["median"],
        ratio["median"],
        ratio["min"],
        ratio["max"],
        document["date"][:10],
        file,
    )


def _single(
    document: dict[str, Any],
    file: str,
    test: str,
    model: dict[str, Any],
    unit: str,
    ours: float,
    other: str,
    theirs: float,
    claim: str = "",
) -> Row:
    """A comparison that was made once: its ratio has no extremes."""
    return Row(
        claim,
        test,
        _name(model),
        model["synthetic"],
        unit,
        ours,
        other,
        theirs,
        ours / theirs,
        None,
        None,
        document["date"][:10],
        file,
    )


def _name(model: dict[str, Any]) -> str:
    return str(model["file"]).removesuffix(".gguf").replace("-synthetic", "")
