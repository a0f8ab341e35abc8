"""Families that differ from Llama in little, against `transformers` and llama.cpp, on tiny random weights."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, Peer, assert_close, run_peer
from helpers.profiles import random_profile
from helpers.tiny_families import tiny_families
from helpers.tiny_models import save
from numpy.typing import NDArray

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.convert.by_neuron import convert
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Peer]:
    """The tiny model of a name, in a directory as Hugging Face's, and run."""

    @cache
    def peer(name: str) -> Peer:
        model = tiny_families()[name]()
        directory = tmp_path_factory.mktemp(name)
        save(model, directory)
        return Peer(model, directory, run_peer(model))

    return peer


def forward(path: Path, backend: Backend) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(path), backend)
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


@pytest.mark.parametrize("name", tiny_families())
def test_reference(name: str, families: Callable[[str], Peer]) -> None:
    peer = families(name)
    assert_close(forward(peer.path, ReferenceBackend()), peer.logits)


@pytest.mark.parametrize("level", CpuBackend.levels())
@pytest.mark.parametrize("name", tiny_families())
def test_cpu(name: str, level: str, families: Callable[[str], Peer]) -> None:
    """At once, then in pieces, back to an earlier position, token by token, and in a fork."""
    peer = families(name)
    model = build_transformer(open_checkpoint(peer.path), CpuBackend(2, level))
    sequence = model.sequence(LENGTH, "f32")
    assert_close(model.forward(Batch.of(sequence, TOKENS, logits=None)), peer.logits)
    start = sequence.reusable(20)
    sequence.rewind(start)
    model.forward(Batch.of(sequence, TOKENS[start:31]))
    sequence.rewind(25)
    fork = sequence.fork()
    rest = model.forward(Batch.of(fork, TOKENS[25:], logits=None))
    rows = [model.forward(Batch.of(sequence, TOKENS[i : i + 1], logits=None)) for i in range(25, LENGTH)]
    assert_close(rest, peer.logits[25:])
    assert_close(np.concatenate(rows), peer.logits[25:])


WRITTEN = ["smollm3", "granite", "arcee", "exaone4", "glm4", "glm4-no-biases", "ministral3", "phi3-longrope"]


@pytest.mark.parametrize("name", WRITTEN)
def test_written_as_gguf(name: str, families: Callable[[str], Peer], tmp_path: Path) -> None:
    """What `hotset convert` makes of the directory says and computes the same, in half precision."""
    source = open_checkpoint(families(name).path)
    convert(source, tmp_path / "model.gguf", random_profile(source))
    assert open_checkpoint(tmp_path / "model.gguf").config.layers[0].ffn
    assert_close(forward(tmp_path / "model.gguf", ReferenceBackend()), families(name).logits, 5e-3)


def test_layers_that_differ_are_not_written_from_a_directory(
    families: Callable[[str], Peer], tmp_path: Path
) -> None:
    source = open_checkpoint(families("gemma4").path)
    with pytest.raises(CheckpointError, match="differ in their heads are written from GGUF files only"):
        convert(source, tmp_path / "model.gguf", random_profile(source))
    assert not list(tmp_path.iterdir())
