"""GGUF files whose FFNs are stored by neuron: plans read back, damage refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from hotset.core.config import DEFAULT_KEPT, Activation, FFNPlan, Score, Way
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.ffn_plan import plan_keys

HIDDEN, FFN, WIDTH = 8, 6, 4


def write(path: Path, keys: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    """A Llama of two layers; ``changes`` are shapes of tensors to add or change, None to leave one out."""
    shapes: dict[str, tuple[int, ...] | None] = {"token_embd": (5, HIDDEN), "output_norm": (HIDDEN,)}
    for i in range(2):
        shapes |= {f"blk.{i}.{name}_norm": (HIDDEN,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{i}.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{name}": (FFN, HIDDEN) for name in ("gate", "up", "down_t")}
        shapes |= {f"blk.{i}.fc1": (WIDTH + i, HIDDEN), f"blk.{i}.fc2": (FFN, WIDTH + i)}
    shapes |= changes or {}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (("context_length", 16), ("embedding_length", HIDDEN), ("block_count", 2)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.feed_forward_length", FFN)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in keys.items():
        kind = {str: writer.add_string, float: writer.add_float32}.get(type(value), writer.add_array)
        kind(key, value.tolist() if isinstance(value, np.ndarray) else value)  # type: ignore[operator]
    for name, shape in shapes.items():
        if shape:
            writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plans(checkpoint: Checkpoint) -> list[FFNPlan | None]:
    return [layer.ffn for layer in checkpoint.config.layers]


PLANS = [
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK, 0.25, kept=0.5),
    FFNPlan(Way.THRESHOLD, Score.DOWN, 0.5),
]


def test_plans_come_back(tmp_path: Path) -> None:
    model = open_checkpoint(write(tmp_path / "a.gguf", plan_keys(PLANS)))
    assert plans(model) == PLANS


def test_a_dense_layer_keeps_its_down(tmp_path: Path) -> None:
    changes = {
        "blk.0.ffn_down_t": None,
        "blk.0.ffn_down": (HIDDEN, FFN),
        "blk.0.fc1": None,
        "blk.0.fc2": None,
    }
    keys = plan_keys([FFNPlan(Way.DENSE), PLANS[1]])
    model = open_checkpoint(write(tmp_path / "a.gguf", keys, changes))
    assert plans(model) == [None, PLANS[1]]


def test_predictors_of_older_files_are_audited_for_the_default(tmp_path: Path) -> None:
    keys = plan_keys(PLANS)
    del keys["hotset.ffn.kept"]
    model = open_checkpoint(write(tmp_path / "a.gguf", keys))
    assert plans(model) == [replace(PLANS[0], kept=DEFAULT_KEPT), PLANS[1]]


@pytest.mark.parametrize(("activation", "way"), [(Activation.RELU, Way.EXACT), (Activation.SILU, Way.DENSE)])
def test_without_keys_the_activation_decides(activation: Activation, way: Way, tmp_path: Path) -> None:
    model = open_checkpoint(write(tmp_path / "a.gguf", {"hotset.activation": activation.value}))
    assert plans(model) == [FFNPlan(way)] * 2


def test_powerinfer_files_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", {"powerinfer.sparse_threshold": -0.5})
    file.write_bytes(b"PWRI" + file.read_bytes()[4:])
    model = open_checkpoint(file)
    assert model.config.activation is Activation.RELU
    plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, -0.5, DEFAULT_KEPT, raw_input=True)
    assert plans(model) == [plan] * 2


DAMAGE = {
    "ways": ({"hotset.ffn.way": ["exact"]}, {}, "expected 2 names, one for each layer, found"),
    "unknown way": ({"hotset.ffn.way": ["exact", "some"]}, {}, "expected one of dense, exact"),
    "exact": ({"hotset.ffn.way": ["exact", "dense"]}, {}, "layer 0 is exact, which needs an activation"),
    "score": (plan_keys([FFNPlan(Way.THRESHOLD, Score.LOW_RANK)] * 2), {}, "expected gate, down where"),
    "cut-offs": (plan_keys(PLANS) | {"hotset.ffn.cutoff": [1.0]}, {}, "expected 2 numbers"),
    "not finite": (plan_keys(PLANS) | {"hotset.ffn.cutoff": [1.0, float("nan")]}, {}, "expected 2 numbers"),
    "kept": (plan_keys(PLANS) | {"hotset.ffn.kept": [0.5, 1.0]}, {}, "expected numbers from 0 to under 1"),
    "predictor": (plan_keys(PLANS), {"blk.0.fc2": None}, "blk.0.fc2.weight is missing"),
    "width": (plan_keys(PLANS), {"blk.0.fc2": (FFN, 5)}, r"fc2.weight: expected shape \[6, 4\]"),
    "by neuron": (plan_keys(PLANS), {"blk.1.ffn_down_t": (HIDDEN, FFN)}, r"expected shape \[6, 8\]"),
    "down": (
        plan_keys(PLANS),
        {"blk.1.ffn_down_t": None, "blk.1.ffn_down": (HIDDEN, FFN), "blk.1.fc1": None, "blk.1.fc2": None},
        "layer 1 is threshold, but blk.1.ffn_down_t.weight is missing",
    ),
    "both": (plan_keys(PLANS), {"blk.0.ffn_down": (HIDDEN, FFN)}, "blk.0.ffn_down.weight' is unexpected"),
}


@pytest.mark.parametrize(("keys", "changes", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_refused(
    keys: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(write(tmp_path / "a.gguf", keys, changes))
    assert "\n" not in str(error.value)
