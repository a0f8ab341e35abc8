"""Standard streams that are closed or full: a line or silence, never a traceback."""

import contextlib
import errno
import io
import os
import sys
from typing import Any

from hotset.core.errors import HotsetError


def prepare_streams() -> None:
    """Open what is closed, to go nowhere, and let standard error lose what it does not take.

    What standard output does not take is a `HotsetError`, or a `BrokenPipeError` where its reader has gone.
    A file that is opened later could else get a closed stream's number, and what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    if sys.stdout is None or (sys.stdout is sys.__stdout__ and not _is_console(1)):  # else a test's
        sys.stdout = _text(_Output(1, "w", closefd=False), sys.__stdout__)
    if sys.stderr is None or (sys.stderr is sys.__stderr__ and not _is_console(2)):
        sys.stderr = _text(_Messages(2, "w", closefd=False), sys.__stderr__)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows another


def abandon_output() -> None:
    """Flush standard output; if it does not take that, let it go nowhere, for Python flushes once more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, HotsetError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_console(number: int) -> bool:
    """Whether this is a console of Windows, whose own stream alone writes every character."""
    return sys.platform == "win32" and os.isatty(number)


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if sys.platform == "win32" and error.errno == errno.EINVAL:
                raise BrokenPipeError from None  # what Windows calls it
            raise HotsetError(f"standard output cannot be written: {error.strerror}") from None


class _Messages(io.FileIO):
    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


def _text(raw: io.FileIO, old: Any) -> io.TextIOWrapper:
    """A stream of text, buffered as the old one; by lines also where Python is not to buffer (python -u)."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(old, "encoding", "utf-8"),
        line_buffering=getattr(old, "line_buffering", True) or getattr(old, "write_through", False),
    )
