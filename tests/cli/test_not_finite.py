"""A model that computes NaN: one line that says where they began, exit code 2, and nothing written."""

import numpy as np
import pytest
from helpers.profiles import random_profile
from helpers.random_gguf import random_model, write_readable

from hotset.formats import open_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model whose FFN of layer 1 is damaged, its profile, and a text."""
    folder = tmp_path_factory.mktemp("not-finite")
    model = random_model("llama")
    model.weights["blk.1.ffn_down.weight"][7, 0] = np.nan
    write_readable(folder / "m.gguf", model)
    random_profile(open_checkpoint(folder / "m.gguf")).save(folder / "p.npz")
    (folder / "text.txt").write_text("Some words, and then some more of them. " * 400)
    return {"model": folder / "m.gguf", "profile": folder / "p.npz", "text": folder / "text.txt"}


@pytest.mark.parametrize(
    "command",
    [
        "run {model} -p Hello --raw -n 4",
        "run {model} -p Hello --raw -n 4 --temperature 1 --top-p 0.9 --seed 1",
        "bench {model}",
        "bench {model} --json",
        "eval {model} --text {text} --context 32",
        "eval {model} --text {text} --context 32 --json",
        "profile {model} --text {text} --context 32 -o {out}",
        "quantize {model} --type q8_0 -o {out}",
        "quantize {model} --type q8_0 --text {text} -o {out}",
        "calibrate {model} --profile {profile} --text {text} -o {out}",
    ],
)
def test_one_line_and_nothing_else(hotset, files, tmp_path, command):
    out = tmp_path / "out"
    code, printed, err = hotset(*command.format(**files, out=out).split())
    assert (code, printed.strip()) == (2, "")
    assert err.count("\n") == 1
    assert "not finite" in err
    assert "layer 1" in err or "blk.1.ffn_down.weight" in err
    assert list(tmp_path.iterdir()) == []
