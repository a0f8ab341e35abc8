"""`hotset convert`, and what `hotset inspect` says of its files."""

import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from helpers.profiles import random_profile
from helpers.random_gguf import random_model, write_plain

from hotset.cli import main
from hotset.formats import open_checkpoint


def hotset(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code


@pytest.mark.parametrize(("activation", "way"), [("relu", "exact"), ("silu", "dense")])
def test_convert_and_inspect(
    activation: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_plain(tmp_path / "m.gguf", random_model("llama", activation=activation), Q.Q8_0)
    random_profile(open_checkpoint(model)).save(tmp_path / "p.npz")
    out = tmp_path / "o.gguf"
    assert hotset("convert", model, "--profile", tmp_path / "p.npz", "--ffn", "q4_1", "-o", out) == 0
    printed = capsys.readouterr().out
    assert f"2 {way}" in printed
    assert ("hotset calibrate" in printed) == (way == "dense")

    assert (
        hotset("convert", model, "--profile", tmp_path / "p.npz", "--ffn", "Q4_1", "-o", out, "--json") == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["out"], told["out_bytes"], told["ways"]) == (str(out), out.stat().st_size, [way] * 2)

    assert hotset("inspect", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["neurons"]["hottest_first"] is True
    assert facts["neurons"]["ways"] == {way: 2}
    assert facts["neurons"]["convert.source"] == "m.gguf"
    assert 0 < facts["neurons"]["convert.down_error"] < 0.1
    assert facts["tensors_by_type"]["Q4_1"]["tensors"] == 6
    assert hotset("inspect", out) == 0
    assert f"{way} in 2 of 2 layers" in capsys.readouterr().out
    assert hotset("inspect", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["neurons"] is None


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_plain(tmp_path / "m.gguf", random_model("llama"))
    random_profile(open_checkpoint(model)).save(tmp_path / "p.npz")
    other = write_plain(tmp_path / "other.gguf", random_model("llama", ffn=128))
    empty = tmp_path / "empty.txt"
    empty.touch()
    out = tmp_path / "o.gguf"
    for arguments, message in [
        ((model, "-o", out), "--profile"),
        ((model, "--profile", tmp_path / "none.npz", "-o", out), "none.npz: cannot be read"),
        ((model, "--profile", model, "-o", out), "m.gguf is no activation profile"),
        ((other, "--profile", tmp_path / "p.npz", "-o", out), "does not belong to"),
        ((model, "--profile", tmp_path / "p.npz", "-o", model), "is one of the files to be read"),
        ((model, "--profile", tmp_path / "p.npz", "-o", out, "--ffn", "q6_k"), "q6_k"),
        ((model, "--profile", tmp_path / "p.npz", "-o", out, "--text", out), "o.gguf cannot be read"),
        ((model, "--profile", tmp_path / "p.npz", "-o", out, "--text", empty), "--text: expected text to"),
    ]:
        assert hotset("convert", *arguments) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert not out.exists()
