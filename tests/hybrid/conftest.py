"""Tiny models in F16, saved once."""

from collections.abc import Callable
from functools import cache

import pytest
from helpers.tiny_models import save, tiny_models

from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """The tiny model of a name."""

    @cache
    def checkpoint(name: str) -> Checkpoint:
        directory = tmp_path_factory.mktemp(name)
        save(tiny_models()[name](), directory, dtype="float16")
        return open_checkpoint(directory)

    return checkpoint
