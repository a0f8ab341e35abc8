"""Kernels of what this machine lacks: NEON under qemu-user, AVX-512 by SIMDe, Windows under Wine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
RUNNERS = Path(__file__).parents[1] / "native"
SIMDE = Path("/usr/include/simde/x86/avx512.h")
ZIG = str(Path(__file__).parents[2] / "packaging/zig/c++")
ZIG_ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}
WINE = ["env", "WINEDEBUG=-all", "wine"]
WINDOWS = ["-target", "x86_64-windows-gnu"]
# Level: compiler, its flags, what runs the program.
LEVELS = {
    "neon": ("aarch64-linux-gnu-g++", ["-march=armv8-a", "-static"], ["qemu-aarch64"]),
    "neon_dotprod": ("aarch64-linux-gnu-g++", ["-march=armv8.2-a+dotprod", "-static"], ["qemu-aarch64"]),
    "avx512": ("g++", ["-march=x86-64-v3", "-include", str(RUNNERS / "avx512_emulation.h")], []),
    "windows_x86_64_v2": (ZIG, [*WINDOWS, "-march=x86-64-v2"], WINE),
    "windows_avx2": (ZIG, [*WINDOWS, "-march=x86-64-v3"], WINE),
}


def build_runner(level: str, sources: Sequence[Path], folder: Path) -> list[str]:
    """Compile a program of one level in `folder`; the command that runs it. Skips where a tool is missing."""
    compiler, flags, emulator = LEVELS[level]
    for program in [compiler, *emulator[-1:]]:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if compiler == ZIG and find_spec("ziglang") is None:
        pytest.skip("needs ziglang")
    if level == "avx512" and not SIMDE.exists():
        pytest.skip("needs libsimde-dev")
    runner = folder / "runner.exe"
    common = [
        "-std=c++20",
        "-O1",
        f"-DHOTSET_LEVEL={level}",
        f"-I{SOURCES}",
        f"-I{RUNNERS}",
        "-o",
        str(runner),
    ]
    subprocess.run([compiler, *flags, *common, *map(str, sources)], check=True, env=ZIG_ENVIRONMENT)
    return [*emulator, str(runner)]
