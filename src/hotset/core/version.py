"""Hotset's version, which the package's metadata are made of, and the commit that it was built from."""

import contextlib
from pathlib import Path

__version__ = "0.1.0"


def commit(package: Path = Path(__file__).parents[1]) -> str:
    """The commit of the checkout that this wheel was built from, ``-dirty`` with changes; or ''."""
    with contextlib.suppress(OSError):
        return (package / "commit.txt").read_text(encoding="utf-8").strip()
    return ""
