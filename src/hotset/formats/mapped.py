"""Memory-mapped files."""

import mmap
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import CheckpointError


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a regular file's bytes, read-only; the mapping lives as long as a view of it does."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise CheckpointError(f"{path}: expected a file, found something else")
        if status.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return np.frombuffer(mapping, dtype=np.uint8)


def read_bytes(path: Path, limit: int = 1 << 26) -> bytes:
    """Read a small file whole."""
    data = map_file(path)
    if data.size > limit:
        raise CheckpointError(f"{path}: expected at most {limit} bytes, found {data.size}")
    return data.tobytes()


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Say why the system would not open a file."""
    return CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
