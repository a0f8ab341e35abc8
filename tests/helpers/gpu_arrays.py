"""NumPy arrays to the GPU backend's and back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_gpu(backend: Any, x: NDArray[np.float32]) -> Any:
    return backend.gpu.upload(x)


def to_numpy(x: Any) -> NDArray[np.float32]:
    return x.cpu().numpy().copy()


def assert_close(found: Any, expected: NDArray[np.float32], tolerance: float) -> None:
    """The largest difference, over the largest number."""
    found = to_numpy(found) if hasattr(found, "cpu") else found
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"relative error {error:.2e}"
