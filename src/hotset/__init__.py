"""Hotset: large language models on a PC whose GPU is too small for them."""

from typing import TYPE_CHECKING, Any

from hotset.core.version import __version__

if TYPE_CHECKING:
    from hotset.serve.engine import Engine
    from hotset.serve.request import Request
    from hotset.serve.sampler import Sampling

__all__ = ["Engine", "Request", "Sampling", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public names when first used, so that the command line starts at once."""
    if name == "Engine":
        from hotset.serve.engine import Engine

        return Engine
    if name == "Request":
        from hotset.serve.request import Request

        return Request
    if name == "Sampling":
        from hotset.serve.sampler import Sampling

        return Sampling
    raise AttributeError(f"module 'hotset' has no attribute {name!r}")
