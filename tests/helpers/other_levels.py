"""Kernels of what this machine lacks: NEON under qemu-user, AVX-512 by SIMDe, Windows under Wine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from hotset._native import kernel_levels

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc"
RUNNERS = ROOT / "tests/native"
SIMDE = Path("/usr/include/simde/x86/avx512.h")
WINE = ["env", "WINEDEBUG=-all", "wine"]
WINDOWS = "x86_64-windows-gnu"
# Level: compiler, its flags, what runs the program.
LEVELS = {
    "neon": ("aarch64-linux-gnu-g++", ["-march=armv8-a", "-static"], ["qemu-aarch64"]),
    "neon_dotprod": ("aarch64-linux-gnu-g++", ["-march=armv8.2-a+dotprod", "-static"], ["qemu-aarch64"]),
    "avx512": ("g++", ["-march=x86-64-v3", "-include", str(RUNNERS / "avx512_emulation.h")], []),
}
# Level: the one of the kernels that a Windows program has.
WINDOWS_LEVELS = {f"windows_{level}": level for level in ("x86_64_v2", "avx2", "avx512")}
ALL_LEVELS = [*LEVELS, *WINDOWS_LEVELS]


def need(*programs: str) -> None:
    """Skip where one of the programs is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


@cache
def cross_build(target: str) -> Path:
    """The folder of the core's test programs for one of Zig's targets. Skips where a tool is missing.

    It stays in build/, so that the next run compiles only what has changed since.
    """
    need("cmake", "ninja")
    if find_spec("ziglang") is None:
        pytest.skip("needs ziglang")
    folder = ROOT / "build/native" / target
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'packaging/zig/toolchain.cmake'}"
    environment = {**os.environ, "PYTHON": sys.executable, "ZIG_TARGET": target}
    for command in (
        ["cmake", "-G", "Ninja", "-S", str(RUNNERS), "-B", str(folder), toolchain],
        ["cmake", "--build", str(folder)],
    ):
        subprocess.run(command, check=True, env=environment)
    return folder


def build_runner(level: str, sources: Sequence[Path], folder: Path) -> list[str]:
    """Compile a program of one level in `folder`, its own source last; the command that runs it.

    Skips where a tool is missing.
    """
    if level in WINDOWS_LEVELS:
        return windows_runner(WINDOWS_LEVELS[level], sources[-1].stem.removesuffix("_runner"))
    compiler, flags, emulator = LEVELS[level]
    need(compiler, *emulator)
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
    subprocess.run([compiler, *flags, *common, *map(str, sources)], check=True)
    return [*emulator, str(runner)]


def windows_runner(level: str, kind: str) -> list[str]:
    """The command that runs a level's program for Windows under Wine, as the wheel has its kernels."""
    need(WINE[-1])
    if level not in kernel_levels():
        pytest.skip(f"Wine runs this processor's instructions, and it has no {level}")
    return [*WINE, str(cross_build(WINDOWS) / f"{kind}_{level}.exe")]
