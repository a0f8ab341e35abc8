"""The tests of the vector kernels, run with those of instruction sets that this machine lacks.

See `test_other_levels.py` for the emulators.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_other_levels import LEVELS, SIMDE
from test_vector import (  # noqa: F401
    test_activation,
    test_attention,
    test_attention_of_large_and_equal_scores,
    test_norm,
    test_rope,
)

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"


class Runner:
    """`hotset._native.VectorKernels` by a program that answers requests: `vector_runner.cpp`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def request(
        self,
        letter: str,
        numbers: list[int],
        arrays: list[NDArray[np.float32] | None],
        out: NDArray[np.float32],
    ) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(letter.encode() + np.array(numbers, np.int64).tobytes())
        for array in arrays:
            if array is not None:
                self.process.stdin.write(np.ascontiguousarray(array, np.float32).tobytes())
        self.process.stdin.flush()
        out[...] = np.frombuffer(self.process.stdout.read(out.nbytes), np.float32).reshape(out.shape)

    def norm(self, layer: bool, x, weight, bias, eps: float, out) -> None:  # type: ignore[no-untyped-def]
        numbers = [layer, x.size, bias is not None]
        self.request("n", numbers, [np.array([eps], np.float32), x, weight, bias], out)

    def activate(self, kind: int, gate, up) -> None:  # type: ignore[no-untyped-def]
        self.request("a", [kind, gate.size, up is not None], [gate, up], gate)

    def rope(self, x, cos, sin, interleaved: bool) -> None:  # type: ignore[no-untyped-def]
        self.request("r", [interleaved, x.size, cos.size], [x, cos, sin], x)

    def attention(self, type: int, q, k, v, window: int, out) -> None:  # type: ignore[no-untyped-def]
        tokens, heads, dim = q.shape
        self.request("t", [type, tokens, *k.shape[:1], heads, k.shape[1], dim, window], [q, k, v], out)


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    level = request.param
    compiler, flags, emulator = LEVELS[level]
    for program in [compiler, *emulator]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if level == "avx512" and not SIMDE.exists():
        pytest.skip("needs libsimde-dev")
    program = tmp_path_factory.mktemp(level) / "runner"
    files = [
        SOURCES / "vector.cpp",
        SOURCES / "attention.cpp",
        SOURCES / "memory.cpp",
        HERE / "vector_runner.cpp",
    ]
    common = ["-std=c++20", "-O1", f"-DHOTSET_LEVEL={level}", f"-I{SOURCES}", "-o", str(program)]
    subprocess.run([compiler, *flags, *common, *map(str, files)], check=True)
    with subprocess.Popen(
        [*emulator, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield Runner(process)
        process.stdin.close()  # type: ignore[union-attr]
