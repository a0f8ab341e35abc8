"""The thread pool, by a C++ program that is compiled here: `pool_stress.cpp`."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")

    def compile_program(*flags: str) -> Path:
        program = tmp_path_factory.mktemp("pool") / "pool_stress"
        files = [
            HERE / "pool_stress.cpp",
            SOURCES / "runtime/thread_pool.cpp",
            SOURCES / "runtime/memory.cpp",
        ]
        command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", *flags, f"-I{SOURCES}", "-pthread"]
        subprocess.run([*command, *map(str, files), "-o", str(program)], check=True)
        return program

    return compile_program


@pytest.fixture(scope="module")
def program(build: Callable[..., Path]) -> Path:
    return build("-O2")


def run(program: Path, *arguments: object) -> float:
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
def test_random_regions(program: Path, threads: int) -> None:
    """Every chunk is committed once and right, although chunks' threads fall asleep in them."""
    assert run(program, "random", threads, 100) == 0


@pytest.mark.parametrize("threads", [2, 4])
def test_stragglers_hold_up_nobody(program: Path, threads: int) -> None:
    """100 regions of about 1.3 ms: a pool that waited for one sleeping thread would take 2 s."""
    assert run(program, "straggler", threads, 2000) < 1800


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 4])
def test_no_data_races(build: Callable[..., Path], threads: int) -> None:
    """ThreadSanitizer reports nothing: not even a straggler reads what is being written."""
    program = build("-O1", "-g", "-fsanitize=thread", "-Wno-tsan")
    assert run(program, "random", threads, 150) == 0
