"""A config.json of which one value is changed: refused in one line, or computed as `transformers` does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.changed_values import OF_NO_COMPUTATION, changed, changes
from helpers.parity import relative_error
from helpers.tiny_families import tiny_families
from helpers.tiny_mixtures import tiny_mixtures
from helpers.tiny_models import save, tiny_models
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

MODELS = {**tiny_models(), **tiny_mixtures(), **tiny_families()}
NOT_OF_THE_PEER = {"llama-drelu"}
NAMES = [name for name in MODELS if name not in NOT_OF_THE_PEER]
QUICK = ["llama-rope-yarn", "lfm2", "nemotron-h-moe", "gemma4-shared", "gpt-oss", "qwen3next"]
TOKENS = np.random.default_rng(1).integers(0, 101, 20).astype(np.int32)


@dataclass(frozen=True)
class Saved:
    """A tiny model in a directory of which config.json is written again for each case."""

    name: str
    directory: Path
    config: dict[str, Any]

    def check(self, path: tuple[str, ...], value: Any) -> bool:
        """Whether the changed directory is accepted: then it computes the same as the peer."""
        text = json.dumps(changed({**self.config, path[0]: self.config.get(path[0])}, path, value))
        (self.directory / "config.json").write_text(text)
        case = f"{self.name}: {'.'.join(path)} = {value!r}"
        try:
            found = ours(self.directory)
        except CheckpointError as error:
            assert str(error).isprintable(), case
            return False
        expected = theirs(self.directory)
        if expected is not None and np.isfinite(expected).all():
            assert found.shape == expected.shape, case
            assert relative_error(found, expected) < 3e-4, case
        return True


def ours(directory: Path) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(directory), CpuBackend(1))
    return model.forward(Batch.of(model.sequence(len(TOKENS), "f32"), TOKENS, logits=None))


def theirs(directory: Path) -> NDArray[np.float32] | None:
    """Logits of `transformers`; None where it refuses the directory, or finds weights missing."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory)
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            attn_implementation="eager",
            experts_implementation="eager",
        )
        if set(info["missing_keys"]) - {"lm_head.weight"} or info["mismatched_keys"]:
            return None
        if config.model_type == "nemotron_h":
            for layer in model.model.layers:
                layer.mixer.time_step_limit = (0.0, float("inf"))  # transformers clamps it by mistake
        with torch.inference_mode():
            return model(torch.from_numpy(TOKENS[None].astype(np.int64))).logits[0].float().numpy()
    except Exception:
        return None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    @cache
    def build(name: str) -> Saved:
        directory = tmp_path_factory.mktemp(name)
        save(MODELS[name](), directory)
        return Saved(name, directory, json.loads((directory / "config.json").read_text()))

    return build


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_value(name: str, saved: Callable[[str], Saved]) -> None:
    model = saved(name)
    accepted = [model.check(path, value) for path, value in changes(model.config)]
    assert any(accepted)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_keys_of_other_families(name: str, saved: Callable[[str], Saved]) -> None:
    model = saved(name)
    seen = set()
    for other in NAMES:
        for key, value in saved(other).config.items():
            case = key, json.dumps(value)
            if key in model.config or key in OF_NO_COMPUTATION or case in seen:
                continue
            seen.add(case)
            model.check((key,), value)


@pytest.mark.parametrize("name", QUICK)
def test_some_values(name: str, saved: Callable[[str], Saved]) -> None:
    model = saved(name)
    for path, value in list(changes(model.config))[::12]:
        model.check(path, value)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
        ("gemma4-beside", {"use_bidirectional_attention": "vision"}),
        ("gemma4-one-size", {"layer_types": ["sliding_attention"] * 2}),
        ("gemma4-one-size", {"layer_types": None}),
    ],
)
def test_what_is_accepted(
    name: str, changes: dict[str, Any], saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    model = saved(name)
    directory = Path(shutil.copytree(model.directory, tmp_path / "model"))
    key, value = next(iter(changes.items()))
    assert Saved(name, directory, {**model.config, **changes}).check((key,), value)


@pytest.mark.parametrize(
    "name, path, value, message",
    [
        ("qwen3moe", ["partial_rotary_factor"], 0.5, "partial_rotary_factor: expected 1.0, found 0.5"),
        ("smollm3", ["rope_parameters", "partial_rotary_factor"], 0.5, "expected 1.0, found 0.5"),
        ("gemma4-beside", ["use_bidirectional_attention"], "all", "expected False, found 'all'"),
        ("lfm2", ["block_ffn_dim_multiplier"], float("nan"), "expected a number over 0, found nan"),
        ("lfm2moe", ["use_expert_bias"], False, "use_expert_bias: expected true, as the tensors have it"),
        ("nemotron-h", ["layers_block_type"], [], "layers_block_type: expected each layer's kind"),
        ("nemotron-h-moe", ["topk_group"], 0, "topk_group: expected an integer from 1 to 1, found 0"),
        ("gemma4-shared", ["hidden_activation"], "relu", "hidden_activation: expected 'gelu_pytorch_tanh'"),
        ("ernie4_5-moe", ["num_experts_per_tok"], 1, "num_experts_per_tok: expected 3, as moe_k says"),
        ("glm4moe", ["use_qk_norm"], False, "use_qk_norm: expected true, as the tensors have it"),
        ("granite-hybrid", ["time_step_limit"], [0.0, 1.0], "time_step_limit: expected 0 to infinity"),
        ("qwen35", ["hidden_act"], "relu", "hidden_act: expected 'silu', found 'relu'"),
        (
            "mellum",
            ["rope_parameters", "full_attention"],
            None,
            "full_attention: expected a table, found None",
        ),
    ],
)
def test_what_is_refused(
    name: str, path: list[str], value: Any, message: str, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    model = saved(name)
    directory = Path(shutil.copytree(model.directory, tmp_path / "model"))
    (directory / "config.json").write_text(json.dumps(changed(model.config, tuple(path), value)))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)
