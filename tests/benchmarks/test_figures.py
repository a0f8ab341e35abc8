"""The arithmetic of the benchmarks: scores against closed forms, windows, ratios, a model's identity."""

import json

import accuracy
import machine
import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st


def test_score_equals_closed_forms():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
    # Softmax ignores a constant: add one that float32 still resolves.
    kl, surprise, agree = accuracy.score(
        np.log(np.stack([p, p])).astype(np.float32) + 30, np.log(np.stack([q, p])).astype(np.float32), [1, 0]
    )
    assert kl == pytest.approx([(p * np.log(p / q)).sum(), 0], abs=1e-5)
    assert surprise == pytest.approx([-np.log(0.5), -np.log(0.7)], rel=1e-5)
    assert list(agree) == [False, True]


@given(st.integers(2, 40), st.integers(1, 200), st.integers(0, 300), st.booleans())
def test_windows_are_consecutive_and_score_enough_where_the_text_allows(size, count, length, with_begin):
    tokens = list(range(1000, 1000 + length))
    found = list(accuracy.windows(tokens, size, count, -1 if with_begin else None))
    for i, window in enumerate(found):
        assert len(window) == size + 1
        assert window[1:] == tokens[i * size + 1 : (i + 1) * size + 1]
        assert window[0] == (-1 if with_begin else tokens[i * size])
    scored = len(found) * (size - size // 2)
    possible = max(0, (length - 1) // size)
    assert scored >= count or len(found) == possible
    assert (len(found) - 1) * (size - size // 2) < count


class Echo:
    """An engine whose logits are the position and the token that it was given."""

    vocab_size = 2

    def clear(self):
        self.length = 0

    def step(self, tokens):
        self.length += len(tokens)

    def logits(self, tokens):
        rows = [[self.length + i, token] for i, token in enumerate(tokens)]
        self.step(tokens)
        return np.array(rows, np.float32)


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
@pytest.mark.parametrize("size", [2, 9, 10])
def test_window_logits_are_the_second_half_for_any_batch(size, batch):
    tokens = list(range(50, 50 + size))
    logits = accuracy.window_logits(Echo(), tokens, batch)
    assert logits.tolist() == [[i, 50 + i] for i in range(size // 2, size)]


def test_ratios_are_taken_pair_by_pair():
    ratios = machine.pairwise([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert ratios["values"] == [2.0, 3.0, 4.0]
    assert (ratios["min"], ratios["median"], ratios["max"]) == (2.0, 3.0, 4.0)


def test_report_names_hardware_versions_and_a_synthetic_model(tmp_path):
    model = tmp_path / "m.gguf"
    synthetic.write(model, "smollm2-135m", "q4_0", layers=1)
    identity = machine.model_identity(model)
    assert identity["synthetic"]
    assert identity["name"] == "synthetic random weights, smollm2-135m"
    machine.write_json(tmp_path / "r.json", machine.report("peers", {"model": [model], "pairs": 5}, identity))
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["arguments"] == {"model": ["m.gguf"], "pairs": 5}
    assert document["results"]["bytes"] == model.stat().st_size
    assert document["hardware"]["cpu"]
    assert document["versions"]["python"]
