"""The GPU backend, in Triton (the `gpu` extra); importing it raises `HotsetError` where that is missing."""

from hotset.core.errors import HotsetError

try:
    import torch as _torch  # noqa: F401
    import triton as _triton  # noqa: F401
except ImportError as error:
    raise HotsetError(f"a GPU needs {error.name}: pip install 'hotset[gpu]'") from None

from hotset.backends.gpu.backend import GpuBackend

__all__ = ["GpuBackend"]
