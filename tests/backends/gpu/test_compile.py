"""Every kernel compiles to machine code for the GPUs that Hotset names: no GPU is needed for that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "helpers" / "compile_launches.py"


def compile_launches(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert not failed, "\n".join(failed)
    return done.stdout


def test_compile() -> None:
    """One token's FFNs, for the oldest GPU named."""
    assert "launches for compute capability 75" in compile_launches("75", "few")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90])
def test_compile_everything(capability: int) -> None:
    """Every type of weight, every size of tile."""
    compile_launches(str(capability), "all")
