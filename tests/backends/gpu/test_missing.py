"""What a user is told where something that the GPU backend needs is missing."""

import os
import subprocess
import sys

import pytest


def last_line(code: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_without_the_extra(missing: str) -> None:
    line = last_line(f"import sys; sys.modules['{missing}'] = None; import hotset.backends.gpu")
    assert line == f"hotset.core.errors.HotsetError: a GPU needs {missing}: pip install 'hotset[gpu]'"


def test_without_the_interpreter() -> None:
    line = last_line("from hotset.backends.gpu import GpuBackend; GpuBackend('cpu')")
    assert line.startswith(
        "hotset.core.errors.HotsetError: device cpu: the GPU's kernels run there in Triton's"
    )
    assert "set TRITON_INTERPRET=1 before starting" in line


def test_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    line = last_line("from hotset.backends.gpu import GpuBackend; GpuBackend()")
    error = "hotset.core.errors.HotsetError: device cuda: torch "
    assert line.startswith(error)
    assert "finds no GPU; run on the CPU" in line
