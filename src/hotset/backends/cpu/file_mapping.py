"""Whether weights lie in a mapped file."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_file_mapping(array: NDArray[np.uint8]) -> bool:
    """Whether the array is a read-only view of a memory-mapped file, so that its pages can be read again."""
    owner: Any = array
    while owner is not None:
        if isinstance(owner, mmap.mmap | np.memmap):
            return not array.flags.writeable
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return False
