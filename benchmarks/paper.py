"""The tables of PowerInfer's paper (SOSP'24, arXiv 2312.12456) that a computer without a GPU allows.

- Speed by length of the answer: its tokens over the whole time, prompt and all, of Hotset by the file's plan
  and with all neurons, and of llama.cpp where it is installed.
- Ablation: all neurons of the ordinary file; the predictor asked, and all neurons computed all the same; then
  only those that it names, by operators over single neurons. The two steps that need a GPU, both sides at
  once and the placement, are left to `gpu_suite.py`.
- The predictor: its size, and which of the neurons that fire it finds.
- Locality: the share of all activations that the hottest neurons make.

A synthetic model (`sparse_models.py`) fires as it was made to: its locality and its predictor's recall are
settings, and only its speeds are findings. Of a real one (`hotset train-predictor`) a text is read.

    python benchmarks/paper.py --sparse 7b-reglu-Q4_0.gguf --plain llama-2-7b-Q4_0.gguf --json paper.json
"""

import argparse
import sys
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from engines import Worker
from machine import fail, model_identity, pairwise, report, span, summary, write_json
from numpy.typing import NDArray

from hotset.activations.capture import windows_of
from hotset.activations.collect import collect
from hotset.activations.profile import fingerprint
from hotset.activations.summary import cumulated, hot_share
from hotset.backends.contract import F32
from hotset.backends.cpu import CpuBackend
from hotset.backends.maths import predict, predictor_matrices
from hotset.core.config import Score, Way
from hotset.core.errors import HotsetError
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.model.build import build_transformer, neuron_ffn_spec
from hotset.model.transformer import Transformer
from hotset.sparsify.choice import ffn_bytes, predictor_bytes
from hotset.sparsify.predictor import activity
from hotset.sparsify.study import inputs
from hotset.tokenizer import Tokenizer

STEPS = {
    "all neurons": ("plain", "hotset"),
    "+ predictor, all computed": ("sparse", "hotset-asked"),
    "+ neuron-aware operators": ("sparse", "hotset"),
}
"""Of the ablation: which file, by which engine."""
PEER = "llama.cpp"
GPU_STEPS = ("+ hybrid", "+ placement")
PROMPT = 64
"""Tokens of each prompt, as in the paper."""
WINDOW = 128
POINTS = 21
"""Of a locality curve, from 0 to all neurons."""


def speeds(sparse: Path, plain: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s of an answer, by its length, and of the ablation's steps; engines take turns."""
    files = {"sparse": sparse, "plain": plain}
    engines = dict(STEPS)
    if find_spec("llama_cpp"):
        engines[PEER] = ("plain", PEER)
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(engine, files[file], args.threads, PROMPT + max(*args.length, args.decode) + 32)
            )
            for name, (file, engine) in engines.items()
        }
        for worker in workers.values():
            worker.ask("decode", tokens=8)
        for number in range(args.rounds):
            for name in list(workers) if number % 2 == 0 else list(workers)[::-1]:
                rates = found.setdefault(name, {})
                rates.setdefault("decode", []).append(workers[name].ask("decode", tokens=args.decode))
                for length in args.length:
                    rate = workers[name].ask("answer", prompt=PROMPT, tokens=length)
                    rates.setdefault(str(length), []).append(rate)
        density = workers["+ neuron-aware operators"].ask("density")
    bases = [name for name in ("all neurons", PEER) if name in found]
    return {
        "density": density,
        "engines": {
            name: {
                what: summary(values)
                | {f"over {base}": pairwise(values, found[base][what]) for base in bases}
                for what, values in rates.items()
            }
            for name, rates in found.items()
        },
    }


def windows(checkpoint: Checkpoint, text: Path | None, tokens: int) -> list[NDArray[np.int32]]:
    """What is read: a text, or random tokens."""
    if text is None:
        ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, tokens)
    else:
        ids = Tokenizer.from_checkpoint(checkpoint).encode(text.read_text(), parse_special=False)[:tokens]
    return windows_of(ids, WINDOW)


def locality(
    checkpoint: Checkpoint, transformer: Transformer, read: list[NDArray[np.int32]]
) -> dict[str, Any]:
    """Each layer's curve, and all layers' together."""
    profile = collect(
        transformer,
        read,
        model=checkpoint.path.name,
        corpus="benchmark",
        fingerprint=fingerprint(checkpoint),
    )
    layers = [*profile.frequency, profile.frequency.reshape(-1)]
    curves = [[round(float(part), 4) for part in _points(cumulated(layer))] for layer in layers]
    return {
        "density": [round(float(d), 4) for d in profile.density],
        "hot_share": [round(hot_share(layer), 4) for layer in layers],
        "curves": curves,
    }


def _points(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    return curve[np.linspace(0, len(curve) - 1, POINTS).round().astype(int)]


def predictors(
    checkpoint: Checkpoint, transformer: Transformer, read: list[NDArray[np.int32]]
) -> list[dict[str, Any]]:
    """Of each layer that has a predictor: its size, and what it names at the file's cut-off."""
    x = inputs(transformer, read, lambda name: nullcontext())
    found = []
    for i, layer in enumerate(checkpoint.config.layers):
        if layer.ffn is None or layer.ffn.way is not Way.PREDICTOR:
            continue
        spec = neuron_ffn_spec(checkpoint, i, layer.ffn)
        seen = activity(transformer.layers[i].ffn, spec, x[i])
        of: F32 = x[i] if layer.ffn.raw_input else seen.n
        scores = predict(predictor_matrices(spec), of, layer.ffn.score is Score.LOW_RANK_RELU)
        chosen = scores >= np.float32(layer.ffn.cutoff)
        hit = np.count_nonzero(chosen & seen.fires)
        found.append(
            {
                "layer": i,
                "bytes": predictor_bytes(spec),
                "share_of_ffn": predictor_bytes(spec) / ffn_bytes(spec),
                "fires": float(seen.fires.mean()),
                "chosen": float(chosen.mean()),
                "recall": hit / max(np.count_nonzero(seen.fires), 1),
                "precision": hit / max(np.count_nonzero(chosen), 1),
                "accuracy": float((chosen == seen.fires).mean()),
                "kept": float((seen.share * chosen).sum(dtype=np.float64) / len(chosen)),
            }
        )
    return found


def show(results: dict[str, Any], lengths: list[int]) -> None:
    """Print the four tables."""
    engines = results["speeds"]["engines"]
    print(f"tokens/s of an answer after a prompt of {PROMPT}, by its length")
    for name, rates in engines.items():
        print(f"  {name:26} " + "  ".join(f"{length}: {span(rates[str(length)])}" for length in lengths))
    print(f"ablation, decoding; {results['speeds']['density']:.1%} of the neurons computed in the end")
    for name in STEPS:
        rates = engines[name]["decode"]
        print(f"  {name:26} {span(rates)} tok/s, {span(rates['over all neurons'], 2)} of all neurons")
    for name in GPU_STEPS:
        print(f"  {name:26} not measured: needs a GPU (gpu_suite.py)")
    rows = results["predictors"]
    if rows:
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        print(
            f"predictors of {len(rows)} layers: {mean['bytes'] / 1e6:.2f} MB each, "
            f"{mean['share_of_ffn']:.1%} of the FFN; recall {mean['recall']:.1%}, "
            f"precision {mean['precision']:.1%}, accuracy {mean['accuracy']:.1%}, "
            f"activation kept {mean['kept']:.1%}"
        )
    *layers, whole = results["locality"]["hot_share"]
    print(
        f"80% of the activations: by {min(layers):.0%} to {max(layers):.0%} of a layer's neurons, by "
        f"{whole:.0%} of the model's"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="The tables of PowerInfer's paper, as far as a CPU goes.")
    parser.add_argument("--sparse", type=Path, required=True, help="model by neuron, with predictors")
    parser.add_argument("--plain", type=Path, required=True, help="ordinary file of the same shape and type")
    parser.add_argument(
        "--text", type=Path, help="what is read for locality and predictors (default: random)"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="how much of it")
    parser.add_argument("--length", type=int, action="append", help="of an answer (default: 8, 128, 512)")
    parser.add_argument("--decode", type=int, default=48, help="tokens of a measurement of the ablation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    args.length = args.length or [8, 128, 512]
    for path in (args.sparse, args.plain):
        if not path.is_file():
            return fail("paper", f"{path}: no such file")
    try:
        results = {"speeds": speeds(args.sparse, args.plain, args)}
        checkpoint = open_checkpoint(args.sparse)
        read = windows(checkpoint, args.text, args.tokens)
        transformer = build_transformer(checkpoint, CpuBackend(threads=args.threads))
        results |= {
            "predictors": predictors(checkpoint, transformer, read),
            "locality": locality(checkpoint, transformer, read),
            "models": [model_identity(path) for path in (args.sparse, args.plain)],
        }
    except (HotsetError, RuntimeError) as error:
        return fail("paper", str(error))
    show(results, args.length)
    if args.json:
        write_json(args.json, report("paper", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
