"""The results' pages are those that the JSON files give."""

from pathlib import Path

import pytest
from results_pages import PAGES, RESULTS, number, pages
from results_plot import plot
from results_rows import Row

pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="needs the results, which an sdist lacks")

ROW = Row(
    "Decoding",
    "decode",
    "a & b",
    False,
    "tokens/s",
    2.0,
    "llama.cpp",
    1.0,
    2.0,
    1.5,
    2.5,
    "2026-11-30",
    "a.json",
)


def test_results_pages_are_what_the_json_files_give_byte_for_byte() -> None:
    committed = {file.name: file.read_bytes() for file in PAGES.iterdir()}
    assert committed == {name: text.encode() for name, text in pages(RESULTS).items()}


def test_a_plot_has_a_bar_and_its_range_and_escapes_names() -> None:
    drawn = plot("Decoding", [ROW])
    assert drawn.count("<rect") == 1
    assert drawn.count('class="range"') == 1
    assert "a &amp; b" in drawn


def test_figures_have_three_digits() -> None:
    assert [number(value) for value in (1234.5, 98.76, 0.0123, None)] == ["1,234", "98.8", "0.0123", ""]


def test_every_file_that_a_results_page_names_exists() -> None:
    for page in PAGES.glob("*.md"):
        folder = Path(RESULTS / page.stem)
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.endswith(".json` |"):
                assert (folder / line.split("`")[-2]).is_file(), line
