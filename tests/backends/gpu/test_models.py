"""Every architecture through the GPU backend against `transformers`, on tiny random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import TOKENS, assert_close, run_peer
from helpers.random_checkpoint import by_neuron, random_checkpoint
from helpers.tiny_families import tiny_families
from helpers.tiny_mixtures import tiny_mixtures
from helpers.tiny_models import nemotron_h, save, tiny_models

from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Way
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

PROMPT, LENGTH = 8, 9  # longer than the sliding windows; the interpreter is slow

# One of each architecture; its options, of which `test_parts` has each, take minutes.
FIRST = {"llama-silu", "mistral", "qwen2", "qwen3", "gemma3", "falcon-7b", "falcon-40b", "opt", "nemotron"}
NAMES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in tiny_models()]

# Other kinds of mixers and of attention.
FAMILIES = {**tiny_families(), **tiny_mixtures(), "nemotron-h": nemotron_h}
QUICK = ["gemma2", "nemotron-h", "gemma4-shared", "gemma4-beside", "deepseek-v3"]
OTHERS = ["qwen3next", "lfm2moe", "granite-hybrid", "deepseek-v2", "glm4-moe-lite"]
OTHERS += ["gpt-oss", "laguna", "olmo2", "exaone4", "ministral3", "phi3-longrope", "gemma4"]


@pytest.mark.parametrize("name", NAMES)
def test_logits(backend: Any, name: str, tmp_path: Path) -> None:
    """A prompt, then token by token."""
    check_logits(backend, tiny_models()[name](), tmp_path)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_logits_of_families(backend: Any, name: str, tmp_path: Path) -> None:
    check_logits(backend, FAMILIES[name](), tmp_path)


def check_logits(backend: Any, model: Any, directory: Path) -> None:
    save(model, directory)
    peer = run_peer(model)[:LENGTH]
    transformer = build_transformer(open_checkpoint(directory), backend)
    tokens = TOKENS % transformer.config.vocab_size
    kv = transformer.sequence(len(TOKENS), "f32")  # the peer's RoPE is that of all tokens
    prompt = transformer.forward(Batch.of(kv, tokens[:PROMPT], logits=None))
    rest = [transformer.forward(Batch.of(kv, tokens[i : i + 1])) for i in range(PROMPT, LENGTH)]
    assert_close(np.concatenate([prompt, *rest]), peer)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_logits_of_half_precision(backend: Any, dtype: str, tmp_path: Path) -> None:
    """Prompts are read with activations as float16."""
    model = tiny_models()["qwen3"]()
    save(model, tmp_path, dtype=dtype)
    peer = run_peer(model)[:PROMPT]
    transformer = build_transformer(open_checkpoint(tmp_path), backend)
    found = transformer.forward(Batch.of(transformer.sequence(PROMPT), TOKENS[:PROMPT], logits=None))
    assert_close(found, peer, 3e-3)


def test_stored_by_neuron(backend: Any) -> None:
    """Whatever the plan is, every neuron that is not zero is computed."""
    checkpoint = random_checkpoint(parallel=True)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(28) for _ in range(2)]
    stored = by_neuron(checkpoint, FFNPlan(Way.EXACT), orders)
    tokens = np.arange(6, dtype=np.int32)
    reference = build_transformer(stored, ReferenceBackend())
    expected = reference.forward(Batch.of(reference.sequence(8, "f32"), tokens, logits=None))
    transformer = build_transformer(stored, backend)
    kv = transformer.sequence(8, "f32")
    found = [
        transformer.forward(Batch.of(kv, tokens[:5], logits=None)),
        transformer.forward(Batch.of(kv, tokens[5:])),
    ]
    assert_close(np.concatenate(found), expected, 1e-4)
