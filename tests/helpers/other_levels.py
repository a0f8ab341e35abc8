"""Kernels of instruction sets that this machine lacks: NEON under qemu-user, AVX-512 by SIMDe."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
RUNNERS = Path(__file__).parents[1] / "native"
SIMDE = Path("/usr/include/simde/x86/avx512.h")
# Level: compiler, its flags, what runs the program.
LEVELS = {
    "neon": ("aarch64-linux-gnu-g++", ["-march=armv8-a", "-static"], ["qemu-aarch64"]),
    "neon_dotprod": ("aarch64-linux-gnu-g++", ["-march=armv8.2-a+dotprod", "-static"], ["qemu-aarch64"]),
    "avx512": ("g++", ["-march=x86-64-v3", "-include", str(RUNNERS / "avx512_emulation.h")], []),
}


def build_runner(level: str, sources: Sequence[Path], folder: Path) -> list[str]:
    """Compile a program of one level in `folder`; the command that runs it. Skips where a tool is missing."""
    compiler, flags, emulator = LEVELS[level]
    for program in [compiler, *emulator]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if level == "avx512" and not SIMDE.exists():
        pytest.skip("needs libsimde-dev")
    runner = folder / "runner"
    common = ["-std=c++20", "-O1", f"-DHOTSET_LEVEL={level}", f"-I{SOURCES}", "-o", str(runner)]
    subprocess.run([compiler, *flags, *common, *map(str, sources)], check=True)
    return [*emulator, str(runner)]
