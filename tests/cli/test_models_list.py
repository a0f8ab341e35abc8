"""The list of families: as a command, and in the docs."""

import json
import re
from pathlib import Path

import pytest

from hotset.architectures.listing import families, markdown
from hotset.architectures.table import ARCHITECTURES
from hotset.cli.app import run_command

PAGE = Path(__file__).parents[2] / "docs/guide/models.md"
TABLE = re.compile(r"(<!-- models.*?-->\n)(.*?)(\n<!-- end of models -->)", re.DOTALL)


def test_every_row_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {name for family in listed for name in family["gguf"].split(", ")} == {
        row.name for row in ARCHITECTURES
    }
    assert run_command(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(family.title in shown for family in families())
    exact = {family["gguf"] for family in listed if family["exact"]}
    assert {"opt", "nemotron", "arcee", "bamboo", "smallthinker"} <= exact


@pytest.mark.skipif(not PAGE.exists(), reason="needs the sources, not an installed package")
def test_the_docs_have_the_same() -> None:
    """`python tests/helpers/models_table.py` writes it."""
    found = TABLE.search(PAGE.read_text())
    assert found
    assert found[2] == markdown()
