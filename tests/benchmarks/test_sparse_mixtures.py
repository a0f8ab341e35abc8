"""Synthetic mixtures whose experts' neurons fire at the rate asked for, as the commands see them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sparse_mixtures

from hotset.cli import main


def test_a_mixture_of_which_a_share_fires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(sparse_mixtures.SMALLTHINKER, hidden=512, ffn=64, heads=4, kv_heads=2, experts=8)
    mixture = sparse_mixtures.MIXTURES["smallthinker-21b"]
    shape = replace(small, experts_used=3, context=128)
    monkeypatch.setitem(
        sparse_mixtures.MIXTURES, "smallthinker-21b", replace(mixture, shape=shape, size=shape.ffn)
    )
    path, text = tmp_path / "st.gguf", tmp_path / "text.txt"
    assert sparse_mixtures.write(path, "smallthinker-21b", 0.3, layers=2) > 0
    text.write_text("Boats come in with the tide, and the keeper counts them from the wall. " * 9)

    def printed(*arguments: object) -> dict[str, object]:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured.err
        found: dict[str, object] = json.loads(captured.out)
        return found

    out = tmp_path / "p.npz"
    facts = printed("profile", path, "--text", text, "--context", 64, "-o", out, "--threads", 1)
    assert facts["units"] == "experts"
    assert all(0.2 < layer["inside"] < 0.4 for layer in facts["layers"])  # type: ignore[attr-defined]
    assert all(layer["density"] == pytest.approx(3 / 8) for layer in facts["layers"])  # type: ignore[attr-defined]
    speed = printed("bench", path, "--prompt-tokens", 0, "--tokens", 24, "--repeats", 1, "--threads", 1)
    assert 0.2 < speed["density"] < 0.4  # type: ignore[operator]
    sorted_path = tmp_path / "sorted.gguf"
    converted = printed("convert", path, "--profile", out, "-o", sorted_path, "--threads", 1)
    assert converted["ways"] == ["exact", "exact"]
    assert printed("inspect", sorted_path)["neurons"]["hottest_first"]  # type: ignore[index]
