"""Gated delta nets in files: what Ollama writes otherwise, blocks that predict further tokens, damage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.gguf_export import export_gguf
from helpers.parity import LENGTH, TOKENS
from helpers.tiny_models import qwen35, save
from numpy.typing import NDArray

from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen35")
    model = qwen35()
    save(model, directory)
    export_gguf(model, directory / "model.gguf")
    return directory / "model.gguf"


def rewritten(
    file: Path,
    out: Path,
    keys: Mapping[str, Any],
    rename: Mapping[str, str] | None = None,
    more: Mapping[str, NDArray[np.float32]] | None = None,
) -> Path:
    """The file with other key-values (None: without), other ends of tensors' names, and more tensors."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, "qwen35")
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    del values["general.architecture"]
    for name, value in (values | dict(keys)).items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for tensor in reader.tensors:
        name = tensor.name
        for end, other in (rename or {}).items():
            name = name.removesuffix(end) + other if name.endswith(end) else name
        writer.add_tensor(name, np.array(tensor.data))
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def logits(path: Path) -> NDArray[np.float32]:
    model = build_transformer(open_checkpoint(path), ReferenceBackend())
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


def test_ollama(file: Path, tmp_path: Path) -> None:
    """Layers are told by their key/value heads, and a vector has another name."""
    keys = {
        "qwen35.attention.recurrent_layers": None,
        "qwen35.attention.head_count_kv": [0, 0, 2, 0, 2],
        "qwen35.ssm.v_head_reordered": True,
    }
    out = rewritten(file, tmp_path / "a.gguf", keys, {"ssm_dt.bias": "ssm_dt"})
    assert np.array_equal(logits(out), logits(file))
    grouped = rewritten(file, tmp_path / "b.gguf", keys | {"qwen35.ssm.v_head_reordered": False})
    assert not np.allclose(logits(grouped), logits(file))


def test_further_tokens(file: Path, tmp_path: Path) -> None:
    keys = {
        "qwen35.block_count": 6,
        "qwen35.nextn_predict_layers": 1,
        "qwen35.attention.recurrent_layers": [True, True, False, True, False, False],
    }
    more = {"blk.5.nextn.enorm.weight": np.ones(3, np.float32), "mtp.fc.weight": np.ones(3, np.float32)}
    out = rewritten(file, tmp_path / "a.gguf", keys, more=more)
    assert np.array_equal(logits(out), logits(file))
    assert "2 tensors that predict" in open_checkpoint(out).notes[-1]


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"ssm.group_count": 4}, "ssm.group_count: expected a divisor of the 6 value heads, found 4"),
        ({"ssm.inner_size": 71}, "ssm.inner_size: expected 6 heads of 12 numbers, found 71"),
        ({"ssm.state_size": 10, "ssm.inner_size": 60}, "expected shape"),
        ({"attention.recurrent_layers": [True]}, "true or false for each of 5 layers"),
        ({"attention.recurrent_layers": [True] * 5}, "attn_qkv.weight is missing"),
        (
            {"attention.recurrent_layers": [True, False, False, True, False]},
            "blk.1.attn",
        ),
        ({"nextn_predict_layers": 5}, "nextn_predict_layers: expected less than the 5 blocks, found 5"),
    ],
)
def test_damage(file: Path, tmp_path: Path, keys: dict[str, Any], error: str) -> None:
    out = rewritten(file, tmp_path / "a.gguf", {f"qwen35.{key}": value for key, value in keys.items()})
    with pytest.raises(CheckpointError, match=error):
        open_checkpoint(out)
