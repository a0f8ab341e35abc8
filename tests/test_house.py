"""The house is in order: rooms with one purpose, files of a size to read, and a map that is true."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DESIGN = (ROOT / "docs/DESIGN.md").read_text()
PACKAGE, NATIVE = ROOT / "src/hotset", ROOT / "csrc"


def sources(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.suffix in (".py", ".cpp", ".h")]


def lines(files: list[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def rooms() -> dict[str, list[Path]]:
    """Every folder of sources, by its name in the table."""
    folders = [f for parent in (PACKAGE, NATIVE) for f in sorted(parent.iterdir()) if f.is_dir()]
    found = {str(f.relative_to(ROOT)).removeprefix("src/hotset/"): sources(f) for f in folders}
    return {name: files for name, files in found.items() if files}


@pytest.mark.skipif(not NATIVE.exists(), reason="needs the sources, not an installed package")
def test_no_file_is_too_long_to_read() -> None:
    files = [file for file in sources(PACKAGE) + sources(NATIVE) if file.name != "simd.h"]
    assert {str(file): n for file in files if (n := lines([file])) > 450} == {}


def test_the_table_of_rooms_is_true() -> None:
    table = re.search(r"<!-- rooms.*?-->(.*?)<!-- end of rooms -->", DESIGN, re.DOTALL)
    assert table
    rows = re.findall(r"^\| `([\w/]+)/` \| (.+?) \| ([\d,]+) \|$", table[1], re.MULTILINE)
    found = rooms()
    assert {name for name, _, _ in rows} == set(found)
    for name, purpose, count in rows:
        assert lines(found[name]) == pytest.approx(int(count.replace(",", "")), rel=0.2, abs=40), name
        init = PACKAGE / name / "__init__.py"
        if init.exists():
            doc = init.read_text().split('"""')[1].split("\n")[0]
            assert purpose == doc.removesuffix("."), name


@pytest.mark.parametrize(("name", "most"), [("cpu", 20), ("hybrid", 30)])
def test_the_maps_name_files_that_exist(name: str, most: int) -> None:
    maps = dict(re.findall(r"<!-- map: (\w+) -->(.*?)<!-- end of map -->", DESIGN, re.DOTALL))
    files = re.findall(r"^\d+\. `([^`]+)`", maps[name], re.MULTILINE)
    assert len(files) > 5
    assert (
        len(files) + (len(re.findall(r"^\d+\.", maps["cpu"], re.MULTILINE)) if name == "hybrid" else 0)
        <= most
    )
    for file in files:
        assert (ROOT / file).is_file(), file


def methods(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (m for m in node.body if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef)))


@pytest.mark.skipif(not NATIVE.exists(), reason="needs the sources, not an installed package")
def test_a_public_method_has_a_docstring_or_is_one_that_a_contract_has_explained() -> None:
    trees = {file: ast.parse(file.read_text()) for file in sources(PACKAGE) if file.suffix == ".py"}
    explained = {m.name for tree in trees.values() for m in methods(tree) if ast.get_docstring(m)}
    fields = (node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.AnnAssign))
    explained |= {field.target.id for field in fields if isinstance(field.target, ast.Name)} | set(dir(str))
    missing = [
        f"{file.relative_to(PACKAGE)}:{method.lineno} {method.name}"
        for file, tree in trees.items()
        for method in methods(tree)
        if not method.name.startswith("_") and not ast.get_docstring(method) and method.name not in explained
    ]
    assert missing == []


@pytest.mark.skipif(not NATIVE.exists(), reason="needs the sources, not an installed package")
def test_no_docstring_only_points_elsewhere() -> None:
    found = [str(file) for file in sources(PACKAGE) if re.search(r'"""See `[\w.]+`\."""', file.read_text())]
    assert found == []
