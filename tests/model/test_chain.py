"""Few rows go through all parts in one call, which gives what the parts give one by one."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_families import tiny_families
from helpers.tiny_mixtures import tiny_mixtures
from helpers.tiny_models import save, tiny_models

from hotset import _native
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer
from hotset.model.transformer import CHAINED, SINK_TOKENS, Transformer

MODELS = {**tiny_models(), **tiny_mixtures(), **tiny_families()}
CHAINS = [
    "llama-silu",
    "llama-relu",
    "qwen3",
    "qwen3moe",
    "gpt-oss",
    "qwen3next",
    "lfm2",
    "nemotron-h-moe",
    "deepseek-v3",
]
NONE = ["falcon-7b", "gemma4-shared"]  # parallel parts; inputs and a factor of each layer


def tiny(name: str, directory: Path) -> Transformer:
    save(MODELS[name](), directory)
    return build_transformer(open_checkpoint(directory), CpuBackend(2))


def logits(model: Transformer) -> np.ndarray:
    """Of two sequences: prompts, then rows of both together, one and several."""
    rng = np.random.default_rng(3)
    sequences = [model.sequence(64, "f32") for _ in range(2)]
    found = []
    for counts in ((12, 12), (1, 1), (1, 3), (5, 1), (2, 2)):
        tokens = rng.integers(0, model.config.vocab_size, sum(counts)).astype(np.int32)
        spans = tuple(Span(sequence, n) for sequence, n in zip(sequences, counts, strict=True))
        found.append(model.forward(Batch(tokens, spans)))
    return np.concatenate(found)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    model = tiny(name, tmp_path)
    assert model._chain is not None
    together = logits(model)
    model._chain = None
    assert np.array_equal(together, logits(model))


@pytest.mark.parametrize("name", NONE)
def test_layers_that_do_more_have_none(name: str, tmp_path: Path) -> None:
    assert tiny(name, tmp_path)._chain is None


def test_many_rows_go_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama-silu", tmp_path)

    rows: list[int] = []

    class Chain:
        def forward(self, x: np.ndarray, view: object) -> None:
            rows.append(len(x))

    monkeypatch.setattr(model, "_chain", Chain())
    for count in (1, CHAINED, CHAINED + 12):
        model.forward(Batch.of(model.sequence(24, "f32"), np.zeros(count, np.int32)))
    assert rows == [1, CHAINED, SINK_TOKENS]  # a prompt's first tokens are a batch of their own


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = tiny("llama-silu", tmp_path)
    with pytest.raises(ValueError, match="part: expected 8 numbers a row"):
        _native.Chain(8).add(model.layers[0].ffn.native)
    view = model.backend.view(Batch.of(model.sequence(4, "f32"), np.zeros(2, np.int32)))
    x = np.zeros((3, model.config.hidden_size), np.float32)
    with pytest.raises(ValueError, match="x: expected 2 rows, found 3"):
        model._chain.forward(x, view)
