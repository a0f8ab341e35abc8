"""The oracle: every part of the decoder in plain NumPy, written to be read as its definition.

Weights are dequantised to float32 and all arithmetic is float32. Nothing is fused, blocked or kept small, so
it is slow and needs four bytes a weight; other backends are tested against it, and it against `transformers`.
"""

from hotset.backends.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
