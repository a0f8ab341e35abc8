"""The tables of PowerInfer's paper, on a tiny synthetic model: what fires is what it was made to fire."""

import json
import sys
from dataclasses import replace

import numpy as np
import paper
import pytest
import sparse_models
import synthetic
from results_rows import READERS


@pytest.fixture
def files(tmp_path, monkeypatch):
    small = replace(
        sparse_models.SHAPES["llama-2-7b"],
        **{"vocab": 600, "context": 512, "hidden": 1024, "ffn": 2048, "heads": 8, "kv_heads": 8},
    )
    monkeypatch.setitem(sparse_models.SHAPES, "llama-2-7b", small)
    monkeypatch.setattr(paper, "find_spec", lambda name: None)
    sparse, plain = tmp_path / "sparse.gguf", tmp_path / "plain.gguf"
    sparse_models.write(sparse, "llama-2-7b", "q4_0", density=0.1, activation="relu", layers=2, seed=0)
    synthetic.write(plain, "llama-2-7b", "q4_0", 2)
    return sparse, plain


def test_all_tables(files, tmp_path, monkeypatch, capsys):
    sparse, plain = files
    out = tmp_path / "paper.json"
    sizes = ["--tokens", "512", "--length", "4", "--decode", "8", "--rounds", "2"]
    command = ["paper.py", "--sparse", str(sparse), "--plain", str(plain), "--json", str(out), *sizes]
    monkeypatch.setattr(sys, "argv", command)
    assert paper.main() == 0
    document = json.loads(out.read_text())
    results = document["results"]
    assert results["speeds"]["density"] == pytest.approx(0.1, abs=0.03)
    *layers, whole = results["locality"]["hot_share"]
    assert len(layers) == 2 and whole == pytest.approx(sparse_models.HOT_SHARE[True], abs=0.06)
    for curve in results["locality"]["curves"]:
        assert (curve[0], curve[-1]) == (0, 1) and np.all(np.diff(curve) >= 0)
        assert np.all(np.diff(curve, 2) <= 1e-3), "hottest first"
    for row in results["predictors"]:
        assert row["recall"] == pytest.approx(sparse_models.RECALL, abs=0.04)
        assert 0.5 < row["precision"] <= 1 and row["kept"] > 0.98
    assert "+ hybrid                   not measured: needs a GPU" in capsys.readouterr().out
    rows = list(READERS["paper"](out.name, document))
    assert [row.test for row in rows] == [f"decode, {step}" for step in list(paper.STEPS)[1:]]
    assert all(row.synthetic and row.low <= row.ratio <= row.high for row in rows)
