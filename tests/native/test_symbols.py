"""Objects compiled for one instruction set export their table of kernels and nothing else.

Any other symbol, a weak one above all, might be linked into code that CPUs without these instructions run.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

OBJECTS = sorted((Path(__file__).parents[2] / "build").glob("**/hotset_*.dir/**/*.o"))
LEVELS = ["x86_64_v2", "avx2", "avx512", "neon", "neon_dotprod"]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.skipif(not OBJECTS, reason="needs the object files of a build in build/")
def test_each_object_exports_one_table() -> None:
    checked = 0
    for path in OBJECTS:
        level = re.search(r"hotset_(\w+)\.dir", str(path))
        assert level
        if level[1] not in LEVELS:
            continue
        nm = subprocess.run(
            ["nm", "-C", "-g", "--defined-only", path], capture_output=True, text=True, check=True
        )
        names = [line.split(maxsplit=2)[1:] for line in nm.stdout.splitlines()]
        assert len(names) == 1, f"{path}: {names}"
        kind, name = names[0]
        assert kind in "DR", f"{path}: {names}"
        assert re.fullmatch(rf"hotset::\w+_{level[1]}", name), f"{path}: {names}"
        checked += 1
    assert checked >= len(LEVELS[:3])
