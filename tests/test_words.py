"""Plain words: none that CONTRIBUTING.md lists, British spelling, and lines of prose short enough to read."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- words.*?-->(.*?)<!-- end of words -->", re.DOTALL)
AMERICAN = (
    "behavior|analyze|analyzed|canceled|canceling|catalog|center|centered|favor|favorite|gray|initialize|"
    "initialized|labeled|modeled|normalize|normalized|normalization|optimize|optimized|organize|recognize|"
    "recognized|quantization|dequantize|dequantized|summarize|traveled"
)
CODE = re.compile(r"^(```|~~~).*?^\1$|``.*?``|`[^`\n]*`|<style>.*?</style>", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
WIDTH = 100


def prose() -> list[Path]:
    """The pages that a person reads; those made from results by a script have tables alone."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "csrc").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    return sorted([*pages, *(ROOT / "docs").rglob("*.md")])


def sources() -> list[Path]:
    files = [file for folder in ("src/hotset", "csrc") for file in (ROOT / folder).rglob("*")]
    return sorted(f for f in files if f.suffix in (".py", ".h", ".cpp") and f.name != "sample_text.py")


def listed() -> re.Pattern[str]:
    table = TABLE.search(CONTRIBUTING)
    assert table
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table[1], re.MULTILINE)[1:]
    words = [word for row in rows for word in row.split(", ") if not word.startswith("-")]
    return re.compile(r"\b(" + "|".join(r"\s+".join(map(re.escape, w.split())) for w in words) + r")\b", re.I)


def found(pattern: re.Pattern[str], files: list[Path], without: re.Pattern[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in files
        for match in pattern.finditer(without.sub("", file.read_text(encoding="utf-8")))
    ]


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the sources, not an installed package")
def test_no_word_of_the_list_is_used() -> None:
    assert found(listed(), prose() + sources(), TABLE) == []


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the sources, not an installed package")
def test_prose_is_spelt_as_in_britain() -> None:
    assert found(re.compile(rf"\b({AMERICAN})\b", re.I), prose(), CODE) == []


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the sources, not an installed package")
def test_docstrings_are_spelt_as_in_britain() -> None:
    american = re.compile(rf"\b({AMERICAN}|color|colors)\b", re.I)
    wrong = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in sources()
        if file.suffix == ".py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for match in american.finditer(CODE.sub("", ast.get_docstring(node) or ""))
    ]
    assert wrong == []


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the sources, not an installed package")
def test_no_line_of_prose_is_longer_than_a_hundred_columns() -> None:
    longer = [
        f"{page.relative_to(ROOT)}: {line[:60]}"
        for page in prose()
        for line in FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
        if len(line) > WIDTH and not line.lstrip().startswith("|") and " " in line[:WIDTH].strip()
    ]
    assert longer == []
