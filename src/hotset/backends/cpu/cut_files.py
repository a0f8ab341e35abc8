"""Mapped files that become shorter while they are read: an error instead of the end of the process."""

from hotset import _native
from hotset.formats import mapped


def survive_cut_files() -> None:
    """From now on, reading behind the end of a model's file raises `CheckpointError` in the main thread."""
    if _native.watch_mapping not in mapped.watchers:
        mapped.watchers.append(_native.watch_mapping)
        _native.survive_cut_files(mapped.cut_short)
