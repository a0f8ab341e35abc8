"""The same examples in every run, so that main is green for everyone or for no one.

`pytest --hypothesis-profile=explore` draws new ones.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("explore")
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """GPU kernels run in Triton's interpreter, which has to be said before anything imports Triton."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"
