"""The native core and its test programs build for other systems; Windows' are run under Wine."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.other_levels import WINDOWS, WINE, cross_build

pytestmark = pytest.mark.slow

STARTS = {
    "x86_64-windows-gnu": b"MZ",
    "aarch64-windows-gnu": b"MZ",
    "x86_64-macos": bytes.fromhex("cffaedfe 07000001"),
    "aarch64-macos": bytes.fromhex("cffaedfe 0c000001"),
}
"""Target: how its programs begin (Mach-O: the format's number, then the processor's)."""
LEVELS = {"x86_64": ("x86_64_v2", "avx2", "avx512"), "aarch64": ("neon", "neon_dotprod")}


def programs(target: str, folder: Path) -> dict[str, Path]:
    processor, _, system = target.partition("-")
    end = ".exe" if system.startswith("windows") else ""
    kernels = [f"{kind}_{level}" for kind in ("linear", "neuron", "vector") for level in LEVELS[processor]]
    return {name: folder / (name + end) for name in ["pool_stress", "host_worker_stress", *kernels]}


@pytest.mark.parametrize("target", STARTS)
def test_every_program_is_one_of_its_system(target: str) -> None:
    for path in programs(target, cross_build(target)).values():
        assert path.read_bytes().startswith(STARTS[target]), path


@pytest.mark.skipif(shutil.which("wine") is None, reason="needs Wine")
@pytest.mark.parametrize(
    "arguments",
    [
        ("host_worker_stress", "steps", "300"),
        ("host_worker_stress", "failures", "1000"),
        ("host_worker_stress", "interruptions", "50"),
        ("pool_stress", "random", "2", "100"),
        ("pool_stress", "random", "4", "100"),
    ],
    ids=" ".join,
)
def test_threads_under_wine(arguments: tuple[str, ...]) -> None:
    program, *rest = arguments
    command = [*WINE, str(cross_build(WINDOWS) / f"{program}.exe"), *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stdout + done.stderr
