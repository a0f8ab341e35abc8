"""The linear kernels of instruction sets that this machine lacks: NEON under qemu-user, AVX-512 by SIMDe."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_linear import dequantise, expected, random_weights

from hotset.formats.tensor import TensorType

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SIMDE = Path("/usr/include/simde/x86/avx512.h")
# Level: compiler, its flags, what runs the program.
LEVELS = {
    "neon": ("aarch64-linux-gnu-g++", ["-march=armv8-a", "-static"], ["qemu-aarch64"]),
    "neon_dotprod": ("aarch64-linux-gnu-g++", ["-march=armv8.2-a+dotprod", "-static"], ["qemu-aarch64"]),
    "avx512": ("g++", ["-march=x86-64-v3", "-include", str(HERE / "avx512_emulation.h")], []),
}
SHAPES = [(1, 1, 2), (5, 3, 1), (37, 9, 19)]
"""Rows, blocks of columns, tokens."""


@pytest.fixture(scope="module", params=LEVELS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the level's kernels."""
    level = request.param
    compiler, flags, emulator = LEVELS[level]
    for program in [compiler, *emulator]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if level == "avx512" and not SIMDE.exists():
        pytest.skip("needs libsimde-dev")
    program = tmp_path_factory.mktemp(level) / "runner"
    sources = [str(ROOT / "csrc" / "linear.cpp"), str(HERE / "linear_runner.cpp")]
    common = ["-std=c++20", "-O1", f"-DHOTSET_LEVEL={level}", f"-I{ROOT / 'csrc'}", "-o", str(program)]
    subprocess.run([compiler, *flags, *common, *sources], check=True)
    return [*emulator, str(program)]


@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
def test_products(type: TensorType, runner: list[str]) -> None:
    rng = np.random.default_rng(7)
    request, answers = b"", []
    for rows, n_blocks, tokens in SHAPES:
        cols = n_blocks * max(type.block_size, 32)
        data = random_weights(type, rows, cols, rng)
        x = rng.standard_normal((tokens, cols)).astype(np.float32)
        request += np.array([type, rows, cols, tokens, data.nbytes], np.int64).tobytes()
        request += data.tobytes() + x.tobytes()
        answers.append(expected(type, dequantise(type, data, rows), x))
    done = subprocess.run(runner, input=request, capture_output=True, check=True)
    got = np.frombuffer(done.stdout, np.float32)
    for want, tolerance in answers:
        np.testing.assert_array_less(np.abs(got[: want.size].reshape(want.shape) - want), tolerance)
        got = got[want.size :]
    assert got.size == 0
