"""What goes to the terminal besides answers: progress and tables. Imports rich only to draw."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hotset.formats.checkpoint import Checkpoint
    from hotset.serve.loaded import Model

_PATIENCE = 1.0
"""Seconds before a progress bar is worth showing."""


class _Bar:
    """A progress bar on stderr that appears only when the work takes long."""

    def __init__(self, title: str, patience: float) -> None:
        self._title, self._patience = title, patience
        self._start = time.monotonic()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._start < self._patience:
                return
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._title)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(title: str, patience: float = _PATIENCE) -> Iterator[_Bar | None]:
    """A callback `(done, total)` that draws a bar after some seconds; None when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(title, patience)
    try:
        yield bar
    finally:
        bar.close()


def notes(model: "Model | Checkpoint", *more: str) -> None:
    """Say on stderr what the user should know about how a model was read or loaded, and `more`."""
    for note in (*model.notes, *more):
        print(f"note: {note}", file=sys.stderr)


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...] | None = None) -> None:
    """Print rows of plain text to stdout; under a header, all columns but the first are flush right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(
        *(header or [""] * len(rows[0])),
        box=box.SIMPLE_HEAD if header else None,
        show_edge=False,
        show_header=header is not None,
        pad_edge=False,
    )
    for i, column in enumerate(drawn.columns):
        column.overflow = "fold"
        column.justify = "right" if header and i else "left"
    for row in rows:
        drawn.add_row(*row)
    # Where there is no terminal to fit, nothing is folded.
    width = None if sys.stdout.isatty() else 500
    Console(width=width, highlight=False, markup=False, emoji=False).print(drawn)


def size(n_bytes: int) -> str:
    """Bytes for people to read; one GB is 10^9."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def count(number: int) -> str:
    """A large number for people to read."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return str(number)
