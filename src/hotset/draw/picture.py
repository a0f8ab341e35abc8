"""Files of pictures: what can be drawn here, and where."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hotset.core.errors import HotsetError
from hotset.formats.output import check_output, written

_FORMATS = (".png", ".svg", ".pdf")


def check_drawing() -> None:
    """Raise `HotsetError` if nothing can be drawn here."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise HotsetError("drawing needs matplotlib: pip install 'hotset[plots]'") from None


def check_picture(path: Path, reading: Iterable[Path] = ()) -> None:
    """Raise `HotsetError`, before any work is done for it, if no picture can be made as `path`."""
    check_drawing()
    check_output(path, reading, kind="picture", replaces=is_picture)
    if path.suffix.lower() not in _FORMATS:
        raise HotsetError(f"{path}: expected a name that ends in {', '.join(_FORMATS)}")


def is_picture(path: Path) -> bool:
    """Whether a file begins as pictures do."""
    with path.open("rb") as file:
        return file.read(8).startswith((b"\x89PNG", b"%PDF", b"<?xml"))


def save(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib's, whole or not at all, in the format that the name says."""
    with written(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower() or "png")


def headline(axes: Any, text: str) -> None:
    """Write what a picture shows above its axes."""
    axes.set_title(text, loc="left", fontweight="bold", pad=10, parse_math=False)
