"""GGUF files against the `transformers` model that they were written from, and against llama.cpp."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.gguf_export import export_gguf
from helpers.parity import LENGTH, TOKENS, Peer, assert_close, run_peer
from helpers.tiny_models import llama, save, tiny_models
from numpy.typing import NDArray

from hotset.architectures.row import ACTIVATIONS
from hotset.backends.building import Backend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

# What GGUF has no key for: a window in Llama's files, Gemma 3's pattern and bases.
NOT_IN_GGUF = {"mistral", "gemma3-own-pattern"}
NAMES = [name for name in tiny_models() if name not in NOT_IN_GGUF]
FLOATS = [Q.F16, Q.BF16]
QUANTISED = [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]


def forward(path: Path, backend: Backend) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(path), backend)
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Peer]:
    """A tiny model of a name, or with a type a wider Llama, written as GGUF and then run."""

    @cache
    def export(name: str, kind: Q = Q.F32) -> Peer:
        directory = tmp_path_factory.mktemp(name)
        model = tiny_models()[name]() if kind is Q.F32 else llama(**WIDE)
        save(model, directory)
        activation = ACTIVATIONS[model.config.hidden_act].value if name.startswith("llama") else None
        export_gguf(model, directory / "model.gguf", kind, activation=activation)
        return Peer(model, directory / "model.gguf", run_peer(model))

    return export


WIDE = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name: str, exported: Callable[..., Peer], backend: Backend) -> None:
    peer = exported(name)
    assert_close(forward(peer.path, backend), peer.logits)


@pytest.mark.parametrize("kind", [*FLOATS, *QUANTISED], ids=lambda kind: kind.name)
def test_type(kind: Q, exported: Callable[..., Peer], backend: Backend) -> None:
    """Each type in every matrix; the peer runs on the dequantised numbers."""
    peer = exported("llama", kind)
    # The CPU's integer products round the activations to 8 bits.
    tolerance = 0.05 if backend.name == "cpu" and kind in QUANTISED else 1e-4
    assert_close(forward(peer.path, backend), peer.logits, tolerance)


# llama.cpp has one activation an architecture, knows no OPT and no Falcon with biases, takes Nemotron's heads
# to add up to the hidden size, and the norms' epsilon for that of Qwen3.5's unit keys.
ONLY_HERE = {
    "falcon-biases",
    "minitron",
    "opt",
    "qwen35",
    "qwen35-tied",
    "llama-relu",
    "llama-drelu",
    "llama-relu2",
    "llama-gelu",
    "llama-gelu_pytorch_tanh",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONLY_HERE])
def test_llama_cpp(name: str, exported: Callable[..., Peer]) -> None:
    pytest.importorskip("llama_cpp")
    from helpers.llama_cpp import llama_cpp_logits

    path = exported(name).path
    # Its GELU is a table in half precision.
    tolerance = 1e-3 if "gemma" in name or "falcon" in name else 1e-4
    assert_close(forward(path, ReferenceBackend()), llama_cpp_logits(path, TOKENS), tolerance)
