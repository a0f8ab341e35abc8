"""Memory-mapped files."""

import mmap
import stat
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import CheckpointError


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a regular file's bytes, read-only; the mapping lives as long as a view of it does."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise CheckpointError(f"{path}: expected a file, found something else")
        if status.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    data = np.frombuffer(mapping, dtype=np.uint8)
    _open[:] = [(there, file) for there, file in _open if file() is not None]
    _open.append((path, weakref.ref(mapping)))
    for watch in watchers:
        watch(data)
    return data


watchers: list[Callable[[NDArray[np.uint8]], None]] = []
"""Told of each mapping that is made."""
_open: list[tuple[Path, "weakref.ref[mmap.mmap]"]] = []


def check_whole() -> None:
    """Raise `CheckpointError` if a mapped file has become shorter since: what is missing reads as zeros."""
    for path, file in _open:
        mapping = file()
        if mapping is not None and (size := mapping.size()) < len(mapping):
            raise CheckpointError(
                f"{path}: the file was cut short while it was read: expected {len(mapping)} bytes, found "
                f"{size}; get it again"
            )


def cut_short() -> None:
    """Raise the `CheckpointError` for a read that has failed."""
    check_whole()
    raise CheckpointError("a model's file could not be read to its end: the disk or the network has failed")


def read_bytes(path: Path, limit: int = 1 << 26) -> bytes:
    """Read a small file whole."""
    data = map_file(path)
    if data.size > limit:
        raise CheckpointError(f"{path}: expected at most {limit} bytes, found {data.size}")
    return data.tobytes()


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Say why the system would not open a file."""
    return CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
