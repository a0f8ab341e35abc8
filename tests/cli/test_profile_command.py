"""`hotset profile` end to end, on the demo model."""

import json
import shutil

import numpy as np
import pytest

from hotset.activations.profile import load_profile

WORDS = "The old lighthouse keeper walked down to the harbour every morning to watch the boats come in. "


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(WORDS * 12 + "import os\nfor name in os.listdir('.'):\n    print(name)\n" * 8)
    return path


def test_profile_then_show_then_draw(hotset, demo, text, tmp_path):
    out = tmp_path / "p.npz"
    options = ("--text", text, "--context", "64", "--tokens", "200", "-o", out, "--json")
    code, printed, err = hotset("profile", demo, *options)
    assert (code, err) == (0, "")
    facts = json.loads(printed)
    assert (facts["profile"], facts["report"], facts["tokens"]) == (str(out), None, 3 * 60)
    assert (facts["model"], facts["activation"], facts["corpus"]) == (demo.name, "silu", "text.txt")
    assert len(facts["layers"]) == 30
    assert all(0.2 < layer["density"] < 0.8 and layer["correlation"] > 0.2 for layer in facts["layers"])
    made = load_profile(out)
    assert (made.model_hash, made.frequency.shape) == (facts["model_hash"], (30, 1536))
    assert made.density.tolist() == [np.float32(layer["density"]) for layer in facts["layers"]]
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    report = tmp_path / "report"
    code, printed, err = hotset("profile", out, "--report", report)
    assert (code, err) == (0, "")
    assert str(report / "index.html") in printed
    assert len(list(report.glob("*.png"))) == 4


def test_what_goes_wrong_leaves_nothing(hotset, demo, text, tmp_path):
    for options, named in (
        (("--text", text), "0 windows of 512 tokens: expected two or more"),
        (("--text", text, "--context", "64", "--tokens", "100"), "1 windows of 64 tokens"),
        (("--text", text, "--context", "9000"), "8192"),
        (("--text", text, "-o", tmp_path / "missing" / "p.npz"), "there is no directory"),
        (("--text", text, "-o", tmp_path), "expected a file, found a directory"),
        (("--import", tmp_path), "has no activation_0.pt"),
        (("--import", tmp_path, "-t", "2", "-c", "64"), "no text to profile for --context, --threads"),
        (("-t", "2"), "no text to profile for --output, --threads: name a file with --text FILE"),
    ):
        given = options if "-o" in options else (*options, "-o", tmp_path / "p.npz")
        code, out, err = hotset("profile", demo, *given)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert named in err
        assert list(tmp_path.iterdir()) == []
    shutil.copy(text, tmp_path / "p.npz")
    code, _, err = hotset("profile", tmp_path / "p.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert "is no activation profile" in err
    assert "--text FILE" in err
