"""How fast the linear kernels are: decode in GB/s against the memory bandwidth, prefill in GMAC/s.

Weights of each type are larger than the last cache; every thread has its own. A decode step is timed just
after a pass that only reads memory, with as many threads, and their ratio is taken.

    python benchmarks/kernels.py --threads 1 --threads 2 --json kernels.json
"""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import fail, report, summary, write_json

from hotset import _kernels, _native
from hotset.backends.cpu import CpuBackend
from hotset.formats.tensor import TensorType

MATRIX_BYTES = 128 << 20  # a thread's
PREFILL_ROWS, PREFILL_TOKENS = 512, 512


def matrix(level: str, type: TensorType, nbytes: int, cols: int) -> tuple[_kernels.Matrix, int]:
    """A matrix of about so many bytes, and its rows; all its numbers are small and finite."""
    row_bytes = cols // type.block_size * type.block_bytes
    rows = nbytes // row_bytes
    data = np.full(rows * row_bytes, 0x21, np.uint8)
    return _kernels.Matrix(level, type, data, rows, cols), rows


def seconds(pool: ThreadPoolExecutor, work: list[Callable[[], Any]]) -> float:
    """How long it takes to do all the work, each piece in a thread."""
    start = time.perf_counter()
    for done in [pool.submit(piece) for piece in work]:
        done.result()
    return time.perf_counter() - start


def decode(level: str, type: TensorType, cols: int, threads: int, repeats: int) -> dict[str, Any]:
    """Bytes of weights a second, and as a share of the bandwidth."""
    backend = CpuBackend(threads=threads, level=level)
    matrices = [matrix(level, type, MATRIX_BYTES, cols)[0] for _ in range(threads)]
    x = np.linspace(-1, 1, cols, dtype=np.float32)
    speeds, shares = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            bandwidth = backend.memory_bandwidth()
            took = seconds(pool, [lambda m=m: m.matvec(x) for m in matrices])  # type: ignore[misc]
            speeds.append(sum(m.nbytes for m in matrices) / took / 1e9)
            shares.append(speeds[-1] / bandwidth)
    return {"gb_per_second": summary(speeds), "share_of_bandwidth": summary(shares)}


def prefill(level: str, type: TensorType, cols: int, threads: int, repeats: int) -> dict[str, Any]:
    """Multiply-adds a second of a product with many tokens."""
    row_bytes = cols // type.block_size * type.block_bytes
    matrices, rows = zip(
        *[matrix(level, type, PREFILL_ROWS * row_bytes, cols) for _ in range(threads)], strict=True
    )
    x = np.random.default_rng(0).standard_normal((PREFILL_TOKENS, cols), dtype=np.float32)
    with ThreadPoolExecutor(threads) as pool:
        took = [seconds(pool, [lambda m=m: m.matmul(x) for m in matrices]) for _ in range(repeats)]  # type: ignore[misc]
    return {"gmac_per_second": summary([sum(rows) * cols * PREFILL_TOKENS / t / 1e9 for t in took])}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", default=_native.kernel_levels()[0], help="instruction set (the best)")
    parser.add_argument("--type", action="append", help="a type's name, such as Q4_0; repeatable (all)")
    parser.add_argument("--threads", action="append", type=int, help="repeatable (1)")
    parser.add_argument("--cols", type=int, default=4096, help="columns, a multiple of 256 (4096)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.level not in _native.kernel_levels():
        return fail("kernels.py", f"--level: expected one of {', '.join(_native.kernel_levels())}")
    if arguments.cols < 256 or arguments.cols % 256 != 0:
        return fail("kernels.py", f"--cols: expected a multiple of 256, found {arguments.cols}")
    names = arguments.type or [type.name for type in TensorType]
    if unknown := [name for name in names if name not in TensorType.__members__]:
        return fail("kernels.py", f"--type: {unknown[0]} is none of {', '.join(TensorType.__members__)}")

    results = []
    print(f"type  threads  decode GB/s  of bandwidth  prefill GMAC/s   ({arguments.level})")
    for name in names:
        for threads in arguments.threads or [1]:
            case = (arguments.level, TensorType[name], arguments.cols, threads, arguments.repeats)
            result = {"type": name, "threads": threads, "decode": decode(*case), "prefill": prefill(*case)}
            results.append(result)
            print(
                f"{name:5} {threads:7} {result['decode']['gb_per_second']['median']:12.1f}"
                f" {result['decode']['share_of_bandwidth']['median']:13.2f}"
                f" {result['prefill']['gmac_per_second']['median']:15.1f}",
                flush=True,
            )
    if arguments.json:
        write_json(arguments.json, report("kernels", vars(arguments), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
