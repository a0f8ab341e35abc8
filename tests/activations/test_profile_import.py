"""PowerInfer's profiles, written by torch, and the mix of texts that profiles are made from."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_checkpoint import random_checkpoint

from hotset.activations.corpus import corpus_windows
from hotset.activations.powerinfer import import_profile
from hotset.core.errors import HotsetError

torch = pytest.importorskip("torch")

CHECKPOINT = replace(random_checkpoint(windows=(None,) * 12), path=Path("model"))


@pytest.fixture
def counts(tmp_path):
    """12 layers of counts, so that their order by name is not that of the layers."""
    counts = np.random.default_rng(0).integers(0, 1000, (12, 28))
    counts[0, 0], counts[7, 3] = 0, 1000
    for i, layer in enumerate(counts):
        torch.save(torch.tensor(layer), tmp_path / f"activation_{i}.pt")
    (tmp_path / "README.md").write_text("made elsewhere")
    return counts


def test_counts_become_frequencies(counts, tmp_path):
    made = import_profile(tmp_path, CHECKPOINT)
    np.testing.assert_allclose(made.frequency, counts / 1000, rtol=1e-6)
    assert (made.tokens, made.halves, made.model) == (0, None, "model")
    assert made.corpus == f"imported from {tmp_path.name}"
    made.check(CHECKPOINT)
    assert (made.order[7, 0], made.magnitude.any()) == (3, False)
    made = import_profile(tmp_path, CHECKPOINT, tokens=4000)
    np.testing.assert_allclose(made.frequency, counts / 4000, rtol=1e-6)
    assert made.tokens == 4000


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_frequencies_stay(tmp_path, dtype):
    values = torch.linspace(0, 1, 28).to(dtype)
    for i in range(12):
        torch.save(values, tmp_path / f"activation_{i}.pt")
    made = import_profile(tmp_path, CHECKPOINT, tokens=9)
    np.testing.assert_allclose(made.frequency, np.tile(values.double().numpy(), (12, 1)), rtol=1e-6)


def test_parameters_are_tensors_too(tmp_path):
    values = torch.linspace(0, 1, 28)
    for i in range(12):
        torch.save(torch.nn.Parameter(values) if i else values, tmp_path / f"activation_{i}.pt")
    made = import_profile(tmp_path, CHECKPOINT)
    np.testing.assert_allclose(made.frequency, np.tile(values.numpy(), (12, 1)), rtol=1e-6)


class Trap:
    def __reduce__(self):
        return os.system, ("echo trapped > trapped",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "has no activation_11.pt: expected activation_0.pt to activation_11.pt"),
        (torch.zeros(27), r"expected a number for each of 28 neurons, found \[27\]"),
        (torch.zeros(28, 1), r"found \[28, 1\]"),
        ([1.0] * 28, "found list"),
        (torch.full((28,), -1.0), "negative or infinite"),
        (torch.full((28,), torch.nan), "negative or infinite"),
        (torch.zeros(28, dtype=torch.complex64), "complex"),
        (torch.zeros(28).to_sparse(), "expected counts or frequencies, found a tensor of others"),
        (Trap(), "no torch tensor that can be read safely"),
        (b"nonsense", "no torch tensor that can be read safely"),
        (b"", "no torch tensor that can be read safely"),
    ],
)
@pytest.mark.usefixtures("counts")
def test_files_that_are_wrong(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "activation_11.pt"
    if value is None:
        path.unlink()
    elif isinstance(value, bytes):
        path.write_bytes(value)
    else:
        torch.save(value, path)
    with pytest.raises(HotsetError, match=message) as raised:
        import_profile(tmp_path, CHECKPOINT)
    assert "\n" not in str(raised.value)
    assert not Path("trapped").exists()


@pytest.mark.usefixtures("counts")
def test_other_layers_other_counts_no_torch(tmp_path, monkeypatch):
    with pytest.raises(HotsetError, match="has 12 files: expected activation_0.pt to activation_1.pt"):
        import_profile(tmp_path, random_checkpoint())
    with pytest.raises(HotsetError, match=r"fired 1000 times, in 999 tokens"):
        import_profile(tmp_path, CHECKPOINT, tokens=999)
    with pytest.raises(HotsetError, match="cannot be read: No such file"):
        import_profile(tmp_path / "missing", CHECKPOINT)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(HotsetError, match=r"need torch: pip install 'hotset\[train\]'"):
        import_profile(tmp_path, CHECKPOINT)


class Letters:
    """A tokenizer of single characters whose texts begin with token 1."""

    bos_id = 1

    def encode(self, text, *, add_special=True, parse_special=True):
        return [1] * add_special + [ord(letter) for letter in text]


def test_texts_take_turns():
    windows = corpus_windows(Letters(), ["a" * 11, "b" * 3, "c" * 8], 4)
    assert ["".join(map(chr, window[1:])) for window in windows] == ["aaa", "bbb", "ccc", "aaa", "ccc", "aaa"]
    assert {window[0] for window in windows} == {1}
    assert len(corpus_windows(Letters(), ["a" * 100], 4, tokens=15)) == 3
    plain = Letters()
    plain.bos_id = None
    assert corpus_windows(plain, ["abcd"], 5)[0].tolist() == [1, *map(ord, "abcd")]
