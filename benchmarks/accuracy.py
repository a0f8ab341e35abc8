"""How far each engine's predictions are from those of the same weights in F32, on real text.

The file is dequantised to an F32 GGUF (by the `gguf` library), which a reference engine (Hotset or llama.cpp)
runs with an F32 KV cache. The text's tokens are cut into windows; each starts with an empty context, and the
predictions in its second half are scored, as in `llama-perplexity`. For each engine, on the same tokens: the
mean of KL(reference || engine) in nats a token, the perplexity, and how often its likeliest token is the
reference's.

    python benchmarks/accuracy.py --model model.gguf --text book.txt --json result.json
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, F32, PEERS, HotsetEngine, LlamaCppEngine, TokenEngine
from machine import fail, model_identity, report, write_json
from numpy.typing import NDArray

from hotset.formats.gguf_file import read_gguf
from hotset.formats.gguf_writer import NewTensor, same_metadata, write_gguf
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array

ROWS = 64  # scored at once, so that float64 copies of large vocabularies stay small


def log_softmax(logits: F32) -> np.ndarray:
    """Float64 log-probabilities of logits (T, V)."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def score(reference: F32, found: F32, targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of two logits (T, V) and T next tokens: for each the KL, -log p(next), and whether the top-1 agree."""
    kl, surprise, agree = [], [], []
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        p, q = log_softmax(reference[rows]), log_softmax(found[rows])
        kl.append((np.exp(p) * (p - q)).sum(axis=1))
        surprise.append(-q[np.arange(len(q)), targets[rows]])
        agree.append(p.argmax(axis=1) == q.argmax(axis=1))
    return np.concatenate(kl), np.concatenate(surprise), np.concatenate(agree)


def windows(tokens: Sequence[int], size: int, count: int, begin: int | None) -> Iterator[list[int]]:
    """Consecutive windows of `size` tokens and one more to predict, until `count` tokens are scored.

    With `begin` the first token of each window is replaced by it (as `llama-perplexity` does).
    """
    for scored, start in enumerate(range(0, len(tokens) - size, size)):
        if scored * (size - size // 2) >= count:
            return
        window = list(tokens[start : start + size + 1])
        if begin is not None:
            window[0] = begin
        yield window


def window_logits(engine: TokenEngine, tokens: Sequence[int], batch: int) -> F32:
    """Logits after each token of the window's second half, computed in calls of at most `batch` tokens."""
    engine.clear()
    half = len(tokens) // 2
    kept = []
    for start in range(0, len(tokens), batch):
        logits = engine.logits(tokens[start : start + batch])
        kept.append(logits[max(0, half - start) :].copy())
    return np.concatenate(kept)


def evaluate(
    reference: TokenEngine, engines: dict[str, TokenEngine], text_windows: Sequence[list[int]], batch: int
) -> dict[str, Any]:
    """Scores of the reference itself and of every engine over all windows."""
    found: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in ("reference", *engines)}
    for window in text_windows:
        tokens, targets = window[:-1], window[1 + len(window[:-1]) // 2 :]
        expected = window_logits(reference, tokens, len(tokens))
        found["reference"].append(score(expected, expected, targets))
        for name, engine in engines.items():
            found[name].append(score(expected, window_logits(engine, tokens, batch), targets))
    results: dict[str, Any] = {}
    for name, parts in found.items():
        kl, surprise, agree = (np.concatenate(column) for column in zip(*parts, strict=True))
        results[name] = {
            "tokens": len(kl),
            "perplexity": float(np.exp(surprise.mean())),
            "mean_kl": float(kl.mean()),
            "mean_kl_standard_error": float(kl.std() / len(kl) ** 0.5),
            "max_kl": float(kl.max()),
            "top1_agreement": float(agree.mean()),
        }
    return results


def write_dequantised(source: Path, path: Path) -> int:
    """Write the same model with every tensor in F32, dequantised by the `gguf` library; the size in bytes."""
    file = read_gguf(source)
    keys = same_metadata(file.metadata) | {"general.file_type": 0}

    def numbers(tensor: Tensor) -> Iterator[NDArray[np.uint8]]:
        yield tensor_from_array(tensor.name, tensor.to_float32()).data

    tensors = [
        NewTensor(tensor.name, tensor.shape, TensorType.F32, partial(numbers, tensor))
        for tensor in file.tensors.values()
    ]
    return write_gguf(path, keys, tensors)


def main() -> int:
    parser = argparse.ArgumentParser(description="KL and perplexity against the same weights in F32.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="plain text to score, UTF-8")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens to score (whole windows)")
    parser.add_argument(
        "--window", type=int, default=512, help="tokens of a window; its second half is scored"
    )
    parser.add_argument("--batch", type=int, default=512, help="tokens a call; 1 tests the decode kernels")
    parser.add_argument("--reference", choices=PEERS, default="hotset", help="engine for the F32 file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for path in (args.model, args.text):
        if not path.is_file():
            return fail("accuracy", f"{path}: no such file")
    from hotset.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory(prefix="hotset-accuracy-") as folder:
        exact = Path(folder) / "f32.gguf"
        write_dequantised(args.model, exact)
        hotset = HotsetEngine(args.model, args.threads, args.window)
        peer = LlamaCppEngine(args.model, args.threads, args.window)
        reference = ENGINES[args.reference](exact, args.threads, args.window, "f32")
        text = args.text.read_text(encoding="utf-8", errors="replace")
        tokenizer = Tokenizer.from_checkpoint(hotset.checkpoint)
        # Text beyond what can be needed would only cost tokenizing time.
        text = text[: args.tokens * 2 * 16]
        tokens = tokenizer.encode(text, add_special=False)
        begin = next(iter(tokenizer.encode("", add_special=True)), None)
        scored = list(windows(tokens, args.window, args.tokens, begin))
        if not scored:
            return fail("accuracy", f"{args.text}: {len(tokens)} tokens, fewer than --window {args.window}")
        results = evaluate(reference, {"hotset": hotset, "llama.cpp": peer}, scored, args.batch)
        results["tokenizers_agree"] = tokens == peer.tokenize(text)
        print(f"{args.model.name}: {results['hotset']['tokens']} tokens of {args.text.name}")
        for name in ("reference", "hotset", "llama.cpp"):
            r = results[name]
            print(
                f"  {name:10} perplexity {r['perplexity']:.4f}  mean KL {r['mean_kl']:.6f} "
                f"± {r['mean_kl_standard_error']:.6f}  top-1 {r['top1_agreement']:.4f}"
            )
        if not results["tokenizers_agree"]:
            print("  the two tokenizers differ on this text; Hotset's tokens were given to both")
    if args.json:
        results["model"] = model_identity(args.model)
        write_json(args.json, report("accuracy", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
