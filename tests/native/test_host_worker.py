"""The host worker's hand-shake, by a C++ program that is compiled here: `host_worker_stress.cpp`."""

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
        program = tmp_path_factory.mktemp("worker") / "host_worker_stress"
        files = [
            HERE / "host_worker_stress.cpp",
            SOURCES / "worker/host_worker.cpp",
            SOURCES / "worker/packet.cpp",
        ]
        command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", *flags, f"-I{SOURCES}", "-pthread"]
        subprocess.run([*command, *map(str, files), "-o", str(program)], check=True)
        return program

    return compile_program


@pytest.fixture(scope="module")
def program(build: Callable[..., Path]) -> Path:
    return build("-O2")


def run(program: Path, *arguments: object) -> int:
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(("kind", "count"), [("steps", 3000), ("failures", 1000), ("interruptions", 500)])
def test_hand_shakes(program: Path, kind: str, count: int) -> None:
    """Thousands of steps of six tasks: right sums, told errors, and never a hang."""
    assert run(program, kind, count) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["steps", "failures", "interruptions"])
def test_no_data_races(build: Callable[..., Path], kind: str) -> None:
    """ThreadSanitizer reports nothing."""
    program = build("-O1", "-g", "-fsanitize=thread")
    assert run(program, kind, 500) == 0
