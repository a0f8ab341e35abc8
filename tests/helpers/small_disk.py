"""A disk that is full: files of this process may have so many bytes, and a write beyond them fails."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def small_disk(room: int = 10_000) -> Iterator[None]:
    """Writes behind `room` bytes of a file fail with EFBIG, as they do with ENOSPC on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows sets no limit to a file's size")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
