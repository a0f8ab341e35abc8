"""Decode speed while other programs run: what share of its quiet speed each engine keeps.

Quiet and busy measurements alternate, for both engines. Busy means that many processes that only compute, one
thread each. With as many of them as cores, a fair share of the processor is half.

    python benchmarks/contention.py --model model.gguf --threads 2 --busy 2
"""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from engines import PEERS, Worker
from machine import fail, model_identity, pairwise, report, span, summary, write_json

# Ends by itself, should this program be killed before it can end it.
SPIN = "import time; end = time.monotonic() + {seconds}\nwhile time.monotonic() < end: sum(range(10000))"


@contextlib.contextmanager
def busy_processes(count: int, seconds: float) -> Iterator[None]:
    """Run `count` processes that only compute, for at most `seconds`."""
    command = [sys.executable, "-S", "-c", SPIN.format(seconds=seconds)]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Decode speed with busy processes running.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=2, help="busy processes")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--decode", type=int, default=128, help="tokens to decode")
    parser.add_argument("--seconds", type=float, default=10, help="end a measurement after so long")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.model.is_file():
        return fail("contention", f"{args.model}: no such file")
    speeds = {name: {"quiet": [], "busy": []} for name in PEERS}
    try:
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(name, args.model, args.threads, args.decode + 32))
                for name in PEERS
            ]
            for worker in workers:
                worker.ask("decode", tokens=16)
            for _ in range(args.pairs):
                for worker in workers:
                    request = {"tokens": args.decode, "seconds": args.seconds}
                    speeds[worker.engine]["quiet"].append(worker.ask("decode", **request))
                    with busy_processes(args.busy, seconds=args.seconds + 60):
                        speeds[worker.engine]["busy"].append(worker.ask("decode", **request))
    except RuntimeError as error:
        return fail("contention", str(error))
    results = {}
    print(f"{args.model.name}: decode, {args.threads} threads, {args.busy} busy processes")
    for name, found in speeds.items():
        results[name] = {kind: summary(values) for kind, values in found.items()}
        results[name]["share_kept"] = pairwise(found["busy"], found["quiet"])
        print(
            f"  {name:10} quiet {span(results[name]['quiet'])} tok/s  "
            f"busy {span(results[name]['busy'])} tok/s  share kept {span(results[name]['share_kept'], 2)}"
        )
    if args.json:
        write_json(
            args.json,
            report("contention", vars(args), {"model": model_identity(args.model), "engines": results}),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
