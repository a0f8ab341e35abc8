"""What files of newer families say: heads by layer, factors, which layers have RoPE; what is refused."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_families import tiny_families
from helpers.tiny_models import save
from safetensors.numpy import load_file, save_file

from hotset.core.config import ModelConfig
from hotset.core.errors import CheckpointError
from hotset.core.heads import HeadsConfig
from hotset.formats import open_checkpoint


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model of a name, as a directory."""

    @cache
    def build(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        save(tiny_families()[name](), path)
        return path

    return build


def config(path: Path, **overrides: Any) -> ModelConfig:
    return open_checkpoint(path, {key: str(value) for key, value in overrides.items()}).config


def test_gemma4_by_layer(directory: Callable[[str], Path]) -> None:
    shared = config(directory("gemma4-shared"))
    assert [shared.heads(i).head_dim for i in range(6)] == [10, 10, 10, 16, 10, 16]
    assert [layer.kv_from for layer in shared.layers] == [None] * 4 + [2, 3]
    assert [shared.neurons(i) for i in range(6)] == [56] * 4 + [112] * 2
    assert shared.kv_layers == (0, 1, 2, 3)
    assert shared.layer_input == 9
    assert not shared.uniform
    beside = config(directory("gemma4-beside"))
    assert beside.heads(2) == HeadsConfig(6, 1, 16)
    assert beside.heads(0) == HeadsConfig(6, 2, 10)
    assert all(layer.beside and layer.experts for layer in beside.layers)
    full = beside.layers[2].rope
    assert full
    assert full.dim == 16
    assert full.inverse_frequencies[4:] == (0,) * 4


def test_where_rope_is(directory: Callable[[str], Path]) -> None:
    assert [layer.rope is None for layer in config(directory("smollm3")).layers] == [0, 0, 0, 1, 0]
    windowed = config(directory("exaone4"))
    assert [layer.rope is None for layer in windowed.layers] == [
        not layer.window for layer in windowed.layers
    ]
    assert all(layer.rope for layer in config(directory("exaone4-no-window")).layers)


def test_negative_factors_of_experts_are_refused(directory: Callable[[str], Path], tmp_path: Path) -> None:
    source = directory("gemma4-beside")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.router.per_expert_scale"))
    save_file({**weights, name: -weights[name]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down_exps_scale.*expected positive numbers"):
        open_checkpoint(tmp_path)
