"""Families whose layers differ, planned for several budgets and split between the stand-in and the host."""

from pathlib import Path

import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close
from helpers.placements import eager_machine
from helpers.random_gguf import smallthinker
from helpers.tiny_families import tiny_families
from helpers.tiny_mixtures import tiny_mixtures
from helpers.tiny_models import nemotron_h, save

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import LayerPlacement, Placement
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.build import build_hybrid
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer
from hotset.placing.planner import Planner
from hotset.testing.late import LateStandIn
from hotset.testing.stand_in import StandInDevice

MODELS = {**tiny_families(), **tiny_mixtures(), "nemotron-h": nemotron_h}
DIFFERENT = [
    *("gemma2", "gemma4", "gemma4-beside", "gemma4-shared"),
    *("nemotron-h", "nemotron-h-moe", "lfm2moe", "granite-hybrid", "qwen3next"),
    *("deepseek-v2-low-rank", "glm4-moe-lite"),
]


def logits(model: Transformer) -> np.ndarray:
    sequence = model.sequence(LENGTH, "f32")
    tokens = TOKENS % model.config.vocab_size
    parts = [model.forward(Batch.of(sequence, tokens[:19], lossless=True, logits=None))]
    parts += [model.forward(Batch.of(sequence, tokens[i : i + 1])) for i in range(19, LENGTH)]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    "name, device", [*((name, StandInDevice) for name in DIFFERENT), ("gemma4-shared", LateStandIn)]
)
def test_logits_at_several_budgets(name: str, device: type[StandInDevice], tmp_path: Path) -> None:
    save(MODELS[name](), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    check_budgets(checkpoint, device)


@pytest.mark.parametrize("device", [StandInDevice, LateStandIn])
@pytest.mark.parametrize("window", [None, 5])
def test_early_routers(window: int | None, device: type[StandInDevice], tmp_path: Path) -> None:
    check_budgets(open_checkpoint(smallthinker(tmp_path / "model.gguf", window, 2)), device)


def check_budgets(checkpoint: Checkpoint, device: type[StandInDevice]) -> None:
    """The logits at several budgets are those of the CPU alone."""
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)))
    planner = Planner(checkpoint, eager_machine(), context=LENGTH, prompt=8)
    placed = set()
    for share in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0):
        budget = planner.working_bytes + int(share * (planner.everything - planner.working_bytes))
        placement = planner.plan(budget).placement
        placed.add(placement)
        model = build_hybrid(checkpoint, placement, device(), CpuBackend(threads=1))
        assert_close(logits(model), expected, 1e-3)
        model.close()
    assert len(placed) > 3


def test_layers_that_share_keys_have_one_place(tmp_path: Path) -> None:
    save(MODELS["gemma4-shared"](), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    sharing = [i for i, layer in enumerate(checkpoint.config.layers) if layer.kv_from is not None]
    layers = [LayerPlacement(i in sharing, 0) for i in range(checkpoint.config.n_layers)]
    with pytest.raises(ValueError, match="another model's"):
        build_hybrid(checkpoint, Placement(tuple(layers), False), StandInDevice(), CpuBackend(threads=1))
