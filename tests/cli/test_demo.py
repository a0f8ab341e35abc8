"""`hotset demo`: one page with all the figures, and nothing else left behind."""

import json
import re

import pytest
from helpers.random_gguf import random_model, write_readable

from hotset.measure import demo_predictor

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_the_page_tells_what_was_measured(hotset, tmp_path, activation):
    random = random_model("llama")
    model = write_readable(tmp_path / "tiny.gguf", random)
    page = tmp_path / "page.html"
    override = ["--override", "hotset.activation=relu"] if activation == "relu" else []
    code, out, err = hotset("demo", model, "-o", page, "--threads", "2", *override)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "tiny.gguf"]
    text = page.read_text(encoding="utf-8")
    ratio = re.search(r"tokens/s, (\d+\.\d+) times", out)[1]
    assert f"<strong>{ratio} times</strong>" in text
    assert ("its text is nonsense" in text) == (activation == "silu")
    assert text.count("data:image/png;base64,") == (5 if activation == "silu" else 2)
    assert not re.search(r"(src|href)=\"(?!data:)", text), "the page needs nothing beside it"
    density = float(re.search(r"With (\d+)% of the neurons computed", text)[1])
    assert 30 < density < 70, "of random weights about half are above zero"
    assert "all neurons computed is 0 nats" in text
    assert "those that predictors name" in text and "(recall)" in text
    code, out, _ = hotset("demo", model, "-o", page, "--threads", "2", "--json", *override)
    assert code == 0, "a page of its own is replaced"
    found = json.loads(out)
    assert found["page"] == str(page) and 0.3 < found["density"] < 0.7
    predicted = found["predicted"]
    assert len(predicted["rounds"]) == 5 and 0 < predicted["kl"] < 1
    assert 0.9 < predicted["kept"] <= 1 and 0.5 < predicted["recall"] <= 1
    assert {len(found[rates]) for rates in ("original", "dense", "sparse")} == {5}


def test_another_file_is_not_replaced(hotset, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    code, out, err = hotset("demo", "-o", page)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is no page of hotset demo" in err
    assert page.read_text() == "mine"


def test_a_model_stored_by_neuron_is_refused(hotset, tmp_path):
    model, page = write_readable(tmp_path / "tiny.gguf", random_model("llama")), tmp_path / "page.html"
    text, profile, stored = (tmp_path / name for name in ("a.txt", "p.npz", "stored.gguf"))
    text.write_text("Some words, and then some more of them. " * 40)
    assert hotset("profile", model, "--text", text, "-c", "32", "-o", profile)[0] == 0
    assert hotset("convert", model, "--profile", profile, "-o", stored)[0] == 0
    code, out, err = hotset("demo", stored, "-o", page)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "stored by neuron already" in err
    assert not page.exists()


def test_without_torch_the_predictor_is_left_out(hotset, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_predictor, "find_spec", lambda name: None)
    model, page = write_readable(tmp_path / "tiny.gguf", random_model("llama")), tmp_path / "page.html"
    code, out, err = hotset("demo", model, "-o", page, "--override", "hotset.activation=relu")
    assert (code, err) == (0, "")
    assert "left out: training predictors needs torch" in out
    assert "pip install &#x27;hotset[train]&#x27;" in page.read_text()
