"""What predictors keep of the activation while a conversation goes on, and what following it costs.

The model's predictors should have been made from prose alone. Conversations are decoded along given texts,
with the file's own cut-offs and with ones that audits move: one that begins with code, one of prose that
turns to code and back in mid-answer, and two at once. Of every decoded token all neurons are computed too, so
that what is kept is the truth, not what audits say.

    python benchmarks/adaptation.py --model prose.gguf --prose a.txt --code b.txt --json result.json
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import pairwise, report, span, summary, write_json
from numpy.typing import NDArray

from hotset.backends.contract import F32, FFN, BatchView, NeuronFFNSpec
from hotset.backends.cpu import CpuBackend
from hotset.backends.cutoff import QUARTERS
from hotset.backends.maths import normalise, predict, predictor_matrices
from hotset.core.batch import Batch, Sequence, Work
from hotset.core.config import DEFAULT_KEPT, Score, Way
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.model.build import build_transformer, neuron_ffn_spec
from hotset.model.reading import Neurons, traffic
from hotset.model.transformer import Layer, Transformer
from hotset.tokenizer import Tokenizer

PROMPT = 128
STRETCH = 64
"""Tokens between two figures."""
BEGINNING = 512
BEFORE, DURING, AFTER = 512, 768, 512
"""Tokens of prose, code and prose again in the second conversation."""
NEAR = 0.01
"""What is kept may be so much less than wanted."""


@dataclass
class _Watched:
    """A layer's FFN that remembers what it read, and where it cut off."""

    ffn: FFN
    x: list[F32] = field(default_factory=list)
    cutoffs: list[float] = field(default_factory=list)
    chooser: Any = None

    def forward(self, x: F32, out: F32, view: BatchView) -> None:
        if self.chooser:
            self.x.append(x.copy())
            self.cutoffs.append(self.chooser.cutoff)
        self.ffn.forward(x, out, view)

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        self.ffn.neurons(x, gate, h)


def watched(model: Transformer) -> tuple[Transformer, list[_Watched]]:
    """The same model, whose FFNs can be watched."""
    ffns = [_Watched(layer.ffn) for layer in model.layers]
    layers = [Layer(layer.mixer, ffn) for layer, ffn in zip(model.layers, ffns, strict=True)]
    return Transformer(model.config, model.backend, model.embedding, layers, model.head), ffns


def kept(ffn: _Watched, spec: NeuronFFNSpec) -> NDArray[np.float64]:
    """(2, T): of each token the share kept of ``|h|``, and of ``|h| * ||down||``."""
    x = np.concatenate(ffn.x)
    gate = np.empty((len(x), spec.down_t.weight.shape[0]), np.float32)
    h = np.empty_like(gate)
    ffn.neurons(x, gate, h)
    read = x if spec.plan.raw_input else normalise(x, spec.norm)
    scores = predict(predictor_matrices(spec), read, spec.plan.score is Score.LOW_RANK_RELU)
    chosen = scores >= np.array(ffn.cutoffs, np.float32)[:, None]
    shares = []
    for weights in (np.abs(h), np.abs(h) * np.linalg.norm(spec.down_t.weight.to_float32(), axis=1)):
        shares.append((weights * chosen).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-30))
    return np.array(shares, np.float64)


def converse(
    checkpoint: Checkpoint, model: Transformer, prompt: list[int], answer: list[int]
) -> dict[str, Any]:
    """Read a prompt, decode along an answer; figures of every stretch."""
    model, ffns = watched(model)
    sequence = model.sequence(len(prompt) + len(answer))
    model.forward(Batch.of(sequence, np.array(prompt, np.int32), lossless=True))
    choosing = [i for i, layer in enumerate(checkpoint.config.layers) if layer.ffn and layer.ffn.score]
    for i in choosing:
        ffns[i].chooser = sequence.choosers[i]
    work = [_work(sequence)]
    for i, token in enumerate(answer):
        model.forward(Batch.of(sequence, np.array([token], np.int32)))
        if (i + 1) % STRETCH == 0:
            work.append(_work(sequence))
    shares = np.zeros((2, len(answer)))
    for i in choosing:
        plan = checkpoint.config.layers[i].ffn
        assert plan
        shares += kept(ffns[i], neuron_ffn_spec(checkpoint, i, plan)) / len(choosing)
        ffns[i].x, ffns[i].cutoffs = [], []
    figures = {
        name: [round(float(s.mean()), 4) for s in _stretches(share)]
        for name, share in zip(("kept", "kept_by_length"), shares, strict=True)
    }
    size = checkpoint.config.ffn_size
    per_token = [[_mean(a, b) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(work)]
    return figures | {
        "mean_kept": round(float(shares[0].mean()), 4),
        "density": [round(float(np.mean([n.chosen for n in row if n])) / size, 4) for row in per_token],
        "audits_per_layer_and_token": round(
            sum(w.audits for w in work[-1] if w) / len(choosing) / len(answer), 4
        ),
        "share_of_bytes": round(_cost(checkpoint, work[0], work[-1]), 5),
        "shares": shares[0],
    }


def _stretches(share: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(share) - STRETCH + 1, STRETCH):
        yield share[start : start + STRETCH]


def _work(sequence: Sequence) -> list[Work | None]:
    return [chooser.work if chooser else None for chooser in sequence.choosers]


def _mean(a: Work | None, b: Work | None) -> Neurons | None:
    if not a or not b or b.rows == a.rows:
        return None
    return Neurons((b.chosen - a.chosen) / (b.rows - a.rows), (b.read - a.read) / (b.rows - a.rows))


def _cost(checkpoint: Checkpoint, before: list[Work | None], after: list[Work | None]) -> float:
    """Bytes that audits read more than choosing would have, as a share of all that were read.

    An audited token reads every row of gate, and up and down of the firing neurons that had been missed: at
    most as many more as have not been chosen on average.
    """
    read = traffic(checkpoint)
    means = [_mean(a, b) or Neurons(0, 0) for a, b in zip(before, after, strict=True)]
    total = read.bytes_per_token(means)
    extra = 0.0
    for size, first, mean, a, b in zip(read.by_neuron, read.predicted, means, before, after, strict=True):
        if a and b and b.rows > a.rows and b.audits > a.audits:
            audits = b.audits - a.audits
            rate = audits / (b.rows - a.rows) / QUARTERS  # as if all neurons were computed so often
            chosen = (mean.chosen - rate * read.ffn_size) / (1 - rate)  # without those looked at
            missed = (1 - (b.kept - a.kept) / audits) * mean.read  # were they no smaller than the others
            extra += rate * (first * (read.ffn_size - chosen) + (size - first) * missed)
    return extra / total


def back_within(shares: NDArray[np.float64], wanted: float, change: int) -> int | None:
    """Tokens after a change from which on the mean of each stretch is near what is wanted; None: never."""
    for start in range(change, len(shares) - STRETCH, 16):
        if all(
            shares[i : i + STRETCH].mean() >= wanted - NEAR
            for i in range(start, len(shares) - STRETCH + 1, STRETCH)
        ):
            return start - change
    return None


def interleaved(model: Transformer, conversations: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Each conversation alone, then both at once: are their logits and cut-offs equal?"""

    def start(prompt: list[int], room: int) -> Sequence:
        sequence = model.sequence(room)
        model.forward(Batch.of(sequence, np.array(prompt, np.int32), lossless=True))
        return sequence

    alone, cutoffs = [], []
    for prompt, answer in conversations:
        sequence = start(prompt, len(prompt) + len(answer))
        alone.append([model.forward(Batch.of(sequence, np.array([t], np.int32))) for t in answer])
        cutoffs.append([c and c.cutoff for c in sequence.choosers])
    sequences = [start(prompt, len(prompt) + len(answer)) for prompt, answer in conversations]
    equal = True
    for i, tokens in enumerate(zip(*(answer for _, answer in conversations), strict=True)):
        spans = tuple(span for s in sequences for span in Batch.of(s, np.zeros(1, np.int32)).spans)
        logits = model.forward(Batch(np.array(tokens, np.int32), spans))
        equal &= all(np.array_equal(row, one[i][0]) for row, one in zip(logits, alone, strict=True))
    found = [[c and c.cutoff for c in sequence.choosers] for sequence in sequences]
    return {
        "logits_equal": bool(equal),
        "cutoffs_equal": found == cutoffs,
        "cutoffs_differ": found[0] != found[1],
    }


def speed(
    models: dict[str, Transformer], prompt: list[int], answer: list[int], rounds: int
) -> dict[str, Any]:
    """Prompt and decode tokens/s of each in turn, and their ratios over the first."""
    found: dict[str, dict[str, list[float]]] = {name: {"prompt": [], "decode": []} for name in models}
    for number in range(-1, rounds):
        for name in list(models) if number % 2 == 0 else list(models)[::-1]:
            sequence = models[name].sequence(len(prompt) + len(answer))
            start = time.perf_counter()
            models[name].forward(Batch.of(sequence, np.array(prompt, np.int32), lossless=True))
            middle = time.perf_counter()
            for token in answer:
                models[name].forward(Batch.of(sequence, np.array([token], np.int32)))
            end = time.perf_counter()
            if number >= 0:
                found[name]["prompt"].append(len(prompt) / (middle - start))
                found[name]["decode"].append(len(answer) / (end - middle))
    first = found[next(iter(models))]
    return {
        name: {
            part: summary(rates) | {"over_first": pairwise(rates, first[part])}
            for part, rates in parts.items()
        }
        for name, parts in found.items()
    }


def fixed(checkpoint: Checkpoint, choosing: bool = True) -> Checkpoint:
    """The same without audits; or, without choosing, lossless."""
    layers = []
    for layer in checkpoint.config.layers:
        plan = layer.ffn
        if plan and plan.way is Way.PREDICTOR:
            plan = replace(plan, kept=0.0) if choosing else plan
        layers.append(replace(layer, ffn=plan))
    return replace(checkpoint, config=replace(checkpoint.config, layers=tuple(layers)))


def main() -> int:
    parser = argparse.ArgumentParser(description="What predictors keep while a conversation goes on.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    prose, code = (
        list(tokenizer.encode(path.read_text(), parse_special=False)) for path in (args.prose, args.code)
    )
    backend = CpuBackend(args.threads)
    plans = {"file's cut-offs": fixed(checkpoint), "audited": checkpoint}
    models = {name: build_transformer(plan, backend) for name, plan in plans.items()}
    wanted = max((layer.ffn.kept for layer in checkpoint.config.layers if layer.ffn), default=DEFAULT_KEPT)

    begins = code[:PROMPT], code[PROMPT : PROMPT + BEGINNING]
    turns = prose[:PROMPT], prose[PROMPT : PROMPT + BEFORE] + code[:DURING] + prose[-AFTER:]
    results: dict[str, Any] = {"wanted": round(wanted, 4), "stretch": STRETCH}
    for title, (prompt, answer) in {"begins with code": begins, "turns to code": turns}.items():
        for name, plan in plans.items():
            found = converse(plan, models[name], prompt, answer)
            shares = found.pop("shares")
            if title == "turns to code":
                found["back_within"] = back_within(shares[: BEFORE + DURING], wanted, BEFORE)
            results.setdefault(title, {})[name] = found
            print(
                f"{title}, {name}: kept {found['mean_kept']:.4f}, least {min(found['kept']):.4f}", flush=True
            )
            print("   kept", *(f"{share:.3f}" for share in found["kept"]), flush=True)
            print("   density", *(f"{share:.2f}" for share in found["density"]), flush=True)
            print(
                f"   back within {found.get('back_within')} tokens; audits "
                f"{found['audits_per_layer_and_token']}, bytes {found['share_of_bytes']:.2%}",
                flush=True,
            )
    pair = [(p, a[:192]) for p, a in (begins, (prose[:PROMPT], prose[PROMPT:]))]
    results["interleaved"] = interleaved(models["audited"], pair)
    print("interleaved:", results["interleaved"], flush=True)
    if args.rounds:
        results["speed"] = speed(models, prose[:512], prose[512:768], args.rounds)
        for part in ("prompt", "decode"):
            ratio = results["speed"]["audited"][part]["over_first"]
            print(f"{part}: audited {span(ratio, 3)} of the file's cut-offs", flush=True)
    if args.json:
        arguments = vars(args) | {"prose": args.prose.name, "code": args.code.name}
        write_json(args.json, report("adaptation", arguments, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
