"""Commands on a mixture of experts: what they say of it, and what they do not take yet."""

import json
from pathlib import Path

import pytest
from helpers.gguf_bytes import tiny_model

from hotset.architectures.table import ARCHITECTURES
from hotset.convert.by_neuron import convert
from hotset.core.errors import CheckpointError
from hotset.formats import open_checkpoint
from hotset.model.reading import expert_bytes, traffic


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    architecture = next(row for row in ARCHITECTURES if row.name == "qwen2moe")
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_model(architecture).to_bytes())
    return path


def test_inspect(hotset, mixture: Path) -> None:
    code, out, _ = hotset("inspect", mixture, "--json")
    experts = json.loads(out)["experts"]
    assert code == 0
    assert (experts["count"], experts["used"], experts["size"], experts["shared_size"]) == (3, 2, 5, 7)
    one = 4 * 3 * 5 * 8
    assert experts["expert_bytes"] == one
    assert experts["all_bytes"] == 3 * one
    assert experts["token_bytes"] == 2 * one
    weights = sum(tensor.nbytes for tensor in open_checkpoint(mixture).tensors.values())
    assert experts["always_bytes"] == weights - 3 * one
    code, out, _ = hotset("inspect", mixture)
    assert code == 0
    assert "3 of 5 neurons in each of 1 layers, 2 a token, and one of 7 that all tokens use" in out
    assert "holds the model" in out


def test_bytes_of_a_token(mixture: Path) -> None:
    """What a token reads: all but the experts that it does not select, and but the embedding."""
    checkpoint = open_checkpoint(mixture)
    weights = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    experts = expert_bytes(checkpoint)
    unread = (
        0 if "output.weight" not in checkpoint.tensors else checkpoint.tensors["token_embd.weight"].nbytes
    )
    assert traffic(checkpoint).dense == weights - unread - experts.all + experts.chosen


def test_what_mixtures_are_not_taken_by(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="run the file as it is"):
        convert(open_checkpoint(mixture), tmp_path / "c.gguf", None)  # type: ignore[arg-type]


def test_quantize(hotset, mixture: Path, tmp_path: Path) -> None:
    code, out, _ = hotset("quantize", mixture, "--type", "q8_0", "-o", tmp_path / "q.gguf")
    assert code == 0 and "the weights alone" in out
    assert open_checkpoint(tmp_path / "q.gguf").config == open_checkpoint(mixture).config
