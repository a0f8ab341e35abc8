"""The backends that every model test runs on, and the peers' answers, computed once."""

from collections.abc import Callable
from functools import cache

import pytest
from helpers.parity import Peer, run_peer
from helpers.tiny_models import save, tiny_models

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend

BACKENDS: dict[str, Callable[[], Backend]] = {
    "reference": ReferenceBackend,
    **{
        f"cpu-{level}-{threads}": lambda level=level, threads=threads: CpuBackend(threads, level)
        for level in CpuBackend.levels()
        for threads in (1, 2)
    },
}


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Peer]:
    """The tiny model of a name, saved as a Hugging Face directory and run."""

    @cache
    def peer(name: str, dtype: str = "float32") -> Peer:
        model = tiny_models()[name]()
        directory = tmp_path_factory.mktemp(name)
        save(model, directory, dtype=dtype)
        return Peer(model, directory, run_peer(model))

    return peer
