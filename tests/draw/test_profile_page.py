"""Summaries of profiles, and the pictures and the page drawn from them."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.small_disk import small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hotset.activations.profile import ActivationProfile
from hotset.activations.summary import cumulated, hot_share, summarise
from hotset.core.config import Activation
from hotset.core.errors import HotsetError
from hotset.draw.profile_page import write_report


def profile(layers=3, neurons=40, in_halves=True, **changes):
    rng = np.random.default_rng(0)
    pair = rng.random((2, layers, neurons), np.float32) ** 3
    options = {
        "model": "<b>model & co</b>.gguf",
        "activation": Activation.RELU,
        "corpus": "a text",
        "corpus_hash": "ab" * 32,
        "tokens": 12345,
        "window": 512,
        "skipped": 4,
        "fingerprint": rng.random((layers, 64), np.float32),
        "levels": np.zeros(layers, np.float32),
        "frequency": pair.mean(axis=0),
        "magnitude": rng.random((layers, neurons), np.float32),
        "halves": pair if in_halves else None,
    }
    return ActivationProfile(**options | changes)


@settings(deadline=None)
@given(arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 1, width=32)), st.floats(0.01, 1))
def test_hot_share_is_the_fewest_neurons_that_do(frequency, part):
    count = round(hot_share(frequency, part) * frequency.size)
    hottest = np.sort(frequency.astype(np.float64))[::-1]
    wanted = part * hottest.sum()
    assert hottest[:count].sum() >= wanted * (1 - 1e-6)
    assert count == 0 or hottest[: count - 1].sum() < wanted * (1 + 1e-6)


def test_summaries():
    frequency = np.array([[0.8, 0.1, 0.1, 0, 0], [0.5] * 5, [0] * 5], np.float32)
    halves = np.stack([frequency, frequency[:, ::-1]])
    layers = summarise(profile(3, 5, frequency=frequency, halves=halves, magnitude=2 * frequency))
    assert [layer.hot_share for layer in layers] == [0.2, 0.8, 0]
    np.testing.assert_allclose([layer.density for layer in layers], [0.2, 0.5, 0])
    np.testing.assert_allclose([layer.magnitude for layer in layers], [0.4, 1, 0], rtol=1e-6)
    assert [layer.never for layer in layers] == [0.4, 0, 1]
    assert [layer.overlap for layer in layers] == [0, 1, 1]
    assert layers[0].correlation == pytest.approx(np.corrcoef(*halves[:, 0])[0, 1])
    assert [layer.correlation for layer in layers[1:]] == [None, None]
    np.testing.assert_allclose(cumulated(frequency[0]), [0, 0.8, 0.9, 1, 1, 1], rtol=1e-6)
    assert summarise(profile(in_halves=False))[0].overlap is None


class Page(HTMLParser):
    """Counts tags, collects text and sources."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize(("layers", "neurons", "halves"), [(3, 40, True), (1, 1, True), (2, 500, False)])
def test_report(tmp_path, layers, neurons, halves):
    made = profile(layers, neurons, halves)
    made.frequency[-1] = 0  # a layer in which nothing fires
    page = write_report(made, tmp_path / "report")
    names = {"power-law.png", "heat.png", "density.png"} | ({"agreement.png"} if halves else set())
    assert {path.name for path in (tmp_path / "report").iterdir()} == names | {"index.html"}
    for name in names:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|@import|url\(", text)
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == []
    assert len(parsed.sources) == len(names)
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    assert parsed.tags.count("tr") == layers + 1
    assert "b" not in parsed.tags
    shown = "".join(parsed.text)
    assert "<b>model & co</b>.gguf" in shown
    assert "12,345 tokens" in shown
    assert f"{made.density[0]:.1%}" in shown


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HotsetError, match=r"^drawing needs matplotlib: pip install 'hotset\[plots\]'$"):
        write_report(profile(), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_full_disk_leaves_nothing(tmp_path):
    with small_disk(50_000):  # the page is larger
        with pytest.raises(HotsetError, match=r"report/.+: cannot be written: File too large"):
            write_report(profile(), tmp_path / "report")
        with pytest.raises(HotsetError, match=r"p\.npz: cannot be written: File too large"):
            profile(neurons=9000).save(tmp_path / "p.npz")
    assert list(tmp_path.iterdir()) == []
