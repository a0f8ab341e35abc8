"""Hotset: large language models on a PC whose GPU is too small for them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hotset.engine.engine import Engine
    from hotset.engine.sampler import Sampling

__version__ = "0.1.0"
__all__ = ["Engine", "Sampling"]


def __getattr__(name: str) -> Any:
    """Import the public names when first used, so that the command line starts at once."""
    if name == "Engine":
        from hotset.engine.engine import Engine

        return Engine
    if name == "Sampling":
        from hotset.engine.sampler import Sampling

        return Sampling
    raise AttributeError(f"module 'hotset' has no attribute {name!r}")
