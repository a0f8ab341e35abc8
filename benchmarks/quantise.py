"""How far quantised files of one model are from their source, on texts that none was calibrated on.

All files, and the source, run in Hotset with an F32 KV cache, so that the files' weights alone differ. The
texts are cut into windows; the predictions in their second halves are scored (see accuracy.py). The first
file is the one that the others are compared with: the ratios are its mean KL over theirs. Make them from one
source and one calibration text, and with matrices of the same types:

    hotset quantize source.gguf --type q4_0 --text calibration.txt -o hotset.gguf
    llama-imatrix -m source.gguf -f calibration.txt -o matrix.gguf --no-ppl
    llama-quantize --imatrix matrix.gguf --pure --token-embedding-type q8_0 --output-tensor-type q8_0 \\
        source.gguf llama-cpp.gguf q4_0
    python benchmarks/quantise.py --source source.gguf --file hotset.gguf --file llama-cpp.gguf \\
        --text book.txt
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import evaluate, windows
from engines import HotsetEngine
from machine import fail, model_identity, report, write_json


def contents(engine: HotsetEngine, path: Path) -> dict[str, Any]:
    """The file's identity, and the bytes of its tensors by type."""
    types: Counter[str] = Counter()
    for tensor in engine.checkpoint.tensors.values():
        types[tensor.type.name] += tensor.nbytes
    return {**model_identity(path), "tensor_bytes": dict(types)}


def main() -> int:
    parser = argparse.ArgumentParser(description="KL of quantised files from their source.")
    parser.add_argument("--source", type=Path, required=True, help="GGUF file that all were made from")
    parser.add_argument("--file", type=Path, required=True, action="append", help="quantised; repeat it")
    parser.add_argument("--text", type=Path, required=True, action="append", help="UTF-8; may be repeated")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens to score of each text")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for path in (args.source, *args.file, *args.text):
        if not path.is_file():
            return fail("quantise", f"{path}: no such file")
    from hotset.tokenizer import Tokenizer

    source = HotsetEngine(args.source, args.threads, args.window, "f32")
    engines = {path.name: HotsetEngine(path, args.threads, args.window, "f32") for path in args.file}
    tokenizer = Tokenizer.from_checkpoint(source.checkpoint)
    begin = next(iter(tokenizer.encode("", add_special=True)), None)
    results: dict[str, Any] = {"source": contents(source, args.source), "texts": {}}
    results["files"] = {path.name: contents(engines[path.name], path) for path in args.file}
    for path in args.text:
        # Text beyond what can be needed would only cost tokenizing time.
        text = path.read_text(encoding="utf-8", errors="replace")[: args.tokens * 2 * 16]
        tokens = tokenizer.encode(text, add_special=False)
        scored = list(windows(tokens, args.window, args.tokens, begin))
        if not scored:
            return fail("quantise", f"{path}: {len(tokens)} tokens, fewer than --window {args.window}")
        found = results["texts"][path.name] = evaluate(source, engines, scored, args.window)
        print(f"{path.name}: perplexity of the source {found['reference']['perplexity']:.4f}", flush=True)
        for name in engines:
            r = found[name]
            print(
                f"  {name:28} mean KL {r['mean_kl']:.5f} ± {r['mean_kl_standard_error']:.5f}"
                f"  perplexity {r['perplexity']:.4f}  top-1 {r['top1_agreement']:.4f}",
                flush=True,
            )
    first, *others = engines
    kl = {name: np.mean([text[name]["mean_kl"] for text in results["texts"].values()]) for name in engines}
    results["mean_kl"] = {name: float(value) for name, value in kl.items()}
    results["ratio_to"] = {name: float(kl[first] / kl[name]) for name in others}
    for name, ratio in results["ratio_to"].items():
        size, other = (results["files"][which]["bytes"] for which in (first, name))
        print(f"{first} over {name}: KL {ratio:.3f}, size {size / other:.4f}")
    if args.json:
        write_json(args.json, report("quantise", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
