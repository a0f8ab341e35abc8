"""The native core and its test programs build for other systems; Windows' are run under Wine."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.other_levels import RUNNERS, WINE, ZIG, ZIG_ENVIRONMENT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ziglang") is None, reason="needs ziglang"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake"),
]

STARTS = {
    "x86_64-windows-gnu": b"MZ",
    "aarch64-windows-gnu": b"MZ",
    "x86_64-macos": bytes.fromhex("cffaedfe 07000001"),
    "aarch64-macos": bytes.fromhex("cffaedfe 0c000001"),
}
"""Target: how its programs begin (Mach-O: the format's number, then the processor's)."""
LEVELS = {"x86_64": ("x86_64_v2", "avx2", "avx512"), "aarch64": ("neon", "neon_dotprod")}


@pytest.fixture(scope="module", params=STARTS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A target and the folder of its programs."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = ZIG_ENVIRONMENT | {"ZIG_TARGET": request.param}
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={Path(ZIG).with_name('toolchain.cmake')}"
    for command in (
        ["cmake", "-G", "Ninja", "-S", str(RUNNERS), "-B", str(folder), toolchain],
        ["cmake", "--build", str(folder)],
    ):
        subprocess.run(command, check=True, env=environment)
    return request.param, folder


def programs(target: str, folder: Path) -> dict[str, Path]:
    processor, _, system = target.partition("-")
    end = ".exe" if system.startswith("windows") else ""
    kernels = [f"{kind}_{level}" for kind in ("linear", "neuron", "vector") for level in LEVELS[processor]]
    return {name: folder / (name + end) for name in ["pool_stress", "host_worker_stress", *kernels]}


def test_every_program_is_one_of_its_system(built: tuple[str, Path]) -> None:
    for path in programs(*built).values():
        assert path.read_bytes().startswith(STARTS[built[0]]), path


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
def test_threads_under_wine(built: tuple[str, Path], arguments: tuple[str, ...]) -> None:
    target, folder = built
    if target != "x86_64-windows-gnu":
        pytest.skip("Wine here runs x86-64's programs of Windows alone")
    program, *rest = arguments
    command = [*WINE, str(programs(target, folder)[program]), *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stdout + done.stderr
