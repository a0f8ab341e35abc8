"""Time to the first token and peak memory: `hotset run`, and the same through llama-cpp-python.

Every measurement is a fresh process, imports included; both apply the model's chat template and print as they
generate. They alternate, with the file in the page cache. Time ends at the first byte of the answer; peak
memory is the largest resident set of the process over its whole life, mapped files included.

    python benchmarks/startup.py --model model.gguf --json result.json
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import fail, model_identity, pairwise, report, span, summary, write_json

HOTSET = "from hotset.cli import main; main()"
PEER = """
import sys
from llama_cpp import Llama
model, prompt, tokens, threads, context = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
llama = Llama(model, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
messages = [{"role": "user", "content": prompt}]
for chunk in llama.create_chat_completion(messages, max_tokens=tokens, temperature=0, stream=True):
    sys.stdout.write(chunk["choices"][0]["delta"].get("content") or "")
    sys.stdout.flush()
"""


def commands(model: Path, prompt: str, tokens: int, threads: int, context: int) -> dict[str, list[str]]:
    """The command line of each contender."""
    python = [sys.executable, "-c"]
    limits = ["-n", str(tokens), "--threads", str(threads), "--context", str(context)]
    return {
        "hotset": [*python, HOTSET, "run", str(model), "-p", prompt, *limits],
        "llama.cpp": [*python, PEER, str(model), prompt, str(tokens), str(threads), str(context)],
    }


def answer(command: list[str]) -> dict[str, Any]:
    """Run a command to its end: seconds to the first byte of output, peak bytes of memory, and the output."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    first = process.stdout.read(1)
    seconds = time.perf_counter() - start
    text = first + process.stdout.read()
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    process.stderr.close()
    if process.returncode or not text.strip():
        raise RuntimeError(
            f"{command[2].split()[1]}: {errors.decode(errors='replace').strip() or 'no answer'}"
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * unit, "text": text.decode(errors="replace")}


def memory_allowance(model: Path, context: int) -> int:
    """Bytes of the weights and of the KV cache."""
    from hotset.formats import open_checkpoint
    from hotset.state.kv_types import kv_cache_bytes

    checkpoint = open_checkpoint(model)
    weights = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    return weights + kv_cache_bytes(checkpoint.config, context, "f16")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Time to the first token and peak memory of fresh processes."
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF file with a chat template")
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--tokens", type=int, default=16, help="length of the answer")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=["hotset", "llama.cpp"], help="measure one of them alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.model.is_file():
        return fail("startup", f"{args.model}: no such file")
    run = commands(args.model, args.prompt, args.tokens, args.threads, args.context)
    if args.only:
        run = {args.only: run[args.only]}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in run}
    try:
        for command in run.values():
            answer(command)
        for pair in range(args.pairs):
            for name in list(run) if pair % 2 == 0 else list(run)[::-1]:
                found[name].append(answer(run[name]))
    except RuntimeError as error:
        return fail("startup", str(error))
    allowance = memory_allowance(args.model, args.context)
    results: dict[str, Any] = {"model": model_identity(args.model), "weights_and_kv_bytes": allowance}
    print(f"{args.model.name}: weights and KV cache {allowance / 1e6:.0f} MB")
    for name, answers in found.items():
        seconds = summary([a["seconds"] for a in answers])
        over = summary([(a["peak_bytes"] - allowance) / 1e6 for a in answers])
        results[name] = {"first_token_seconds": seconds, "megabytes_over": over, "text": answers[-1]["text"]}
        print(f"  {name:10} first token {span(seconds, 2)} s  peak memory {span(over, 0)} MB over these")
    if len(found) == 2:
        ours, theirs = ([a["seconds"] for a in answers] for answers in found.values())
        results["ratio"] = pairwise(ours, theirs)
        print(f"  time ratio {span(results['ratio'], 2)}")
    if args.json:
        write_json(args.json, report("startup", vars(args), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
