"""GGUF files against the `transformers` model that they were written from, and against llama.cpp."""

from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Q
from helpers.gguf_export import export_gguf
from helpers.parity import LENGTH, TOKENS, assert_close, run_peer
from helpers.tiny_models import llama, save, tiny_models

from hotset.architectures import ACTIVATIONS
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

# What GGUF has no key for: windows in Llama files, Gemma 3's pattern and bases, an OPT architecture.
NOT_IN_GGUF = {"mistral", "gemma3-own-pattern", "opt"}
NAMES = [name for name in tiny_models() if name not in NOT_IN_GGUF]
QUANTISED = [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]


def forward(path: Path, backend: Any) -> Any:
    model = build_transformer(open_checkpoint(path), backend)
    return model.forward(TOKENS, model.kv_cache(LENGTH, "f32"), all_logits=True)


def export(name: str, directory: Path) -> tuple[Any, Path]:
    peer = tiny_models()[name]()
    save(peer, directory)
    activation = ACTIVATIONS[peer.config.hidden_act].value if name.startswith("llama") else None
    path = directory / "model.gguf"
    export_gguf(peer, path, activation=activation)
    return peer, path


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name: str, tmp_path: Path, backend: Any) -> None:
    peer, path = export(name, tmp_path)
    assert_close(forward(path, backend), run_peer(peer))


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, *QUANTISED], ids=lambda kind: kind.name)
def test_type(kind: Q, tmp_path: Path, backend: Any) -> None:
    """Each type in every matrix; the peer runs on the dequantised numbers."""
    peer = llama(
        hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=32
    )
    save(peer, tmp_path)
    path = tmp_path / "model.gguf"
    export_gguf(peer, path, kind)
    assert_close(forward(path, backend), run_peer(peer))


# llama.cpp has one activation an architecture, knows no Falcon with biases, and takes Nemotron's heads to
# add up to the hidden size.
ONLY_HERE = {
    "falcon-biases",
    "minitron",
    "llama-relu",
    "llama-drelu",
    "llama-relu2",
    "llama-gelu",
    "llama-gelu_pytorch_tanh",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONLY_HERE])
def test_llama_cpp(name: str, tmp_path: Path, backend: Any) -> None:
    pytest.importorskip("llama_cpp")
    from helpers.llama_cpp import llama_cpp_logits

    _, path = export(name, tmp_path)
    # Its GELU is a table in half precision.
    tolerance = 1e-3 if "gemma" in name or "falcon" in name else 1e-4
    assert_close(forward(path, backend), llama_cpp_logits(path, TOKENS), tolerance)
