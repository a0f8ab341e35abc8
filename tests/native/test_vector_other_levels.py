"""The tests of the vector kernels, run with those of instruction sets that this machine lacks."""

import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.other_levels import ALL_LEVELS, RUNNERS, SOURCES, build_runner
from numpy.typing import NDArray
from test_vector import (  # noqa: F401
    test_activation,
    test_attention,
    test_attention_of_large_and_equal_scores,
    test_norm,
    test_rope,
)

pytestmark = pytest.mark.slow


class Runner:
    """`hotset._kernels.VectorKernels` by a program that answers requests: `vector_runner.cpp`."""

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


@pytest.fixture(scope="module", params=ALL_LEVELS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    names = ("kernels/vector.cpp", "kernels/attention.cpp", "runtime/memory.cpp")
    sources = [*(SOURCES / name for name in names), RUNNERS / "vector_runner.cpp"]
    command = build_runner(request.param, sources, tmp_path_factory.mktemp(request.param))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Runner(process)
        process.stdin.close()  # type: ignore[union-attr]
