"""A matrix."""

from hotset.backends.contract import F32, Linear


class ReferenceLinear:
    """``y = x W^T + b``."""

    def __init__(self, linear: Linear) -> None:
        self.weight = linear.weight.to_float32()
        self.bias = linear.bias

    def __call__(self, x: F32) -> F32:
        """Of x (T, in): (T, out)."""
        y: F32 = x @ self.weight.T
        return y if self.bias is None else y + self.bias
