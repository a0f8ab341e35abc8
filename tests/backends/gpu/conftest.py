"""The GPU backend in Triton's interpreter, and with `-m gpu` on a real GPU."""

import os
from importlib.util import find_spec

import pytest

if not (find_spec("torch") and find_spec("triton")):  # Triton is there on Linux only
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> object:
    import torch

    from hotset.backends.gpu import GpuBackend

    if request.param == "cuda" and "TRITON_INTERPRET" in os.environ:
        pytest.fail("run the tests of a real GPU alone: pytest -m gpu")
    torch.set_num_threads(1)
    return GpuBackend("cpu" if request.param == "interpreter" else "cuda")
