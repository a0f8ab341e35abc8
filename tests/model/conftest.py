"""The backends that every model test runs on."""

from typing import Any

import pytest

from hotset.backends.reference import ReferenceBackend


@pytest.fixture(params=["reference"])
def backend(request: pytest.FixtureRequest) -> Any:
    return ReferenceBackend()
