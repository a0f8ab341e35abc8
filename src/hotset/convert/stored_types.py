"""Types in which neurons' rows are stored."""

from hotset.backends.blocks import NEURON_TYPES, neuron_type
from hotset.core.errors import HotsetError
from hotset.formats.tensor import TensorType

_FOUR_BITS = (TensorType.Q4_0, TensorType.Q4_1)
"""Rounding to these a second time costs much: perplexity rises by 8 % on SmolLM2-135M, with Q8_0 by 0.2 %."""


def row_type(source: TensorType, hidden: int, asked: TensorType | None) -> TensorType:
    """The type of rows that stay as they are where they can, or the one asked for."""
    return asked or neuron_type(source, hidden)


def transposed_type(source: TensorType, hidden: int, asked: TensorType | None) -> TensorType:
    """The type of rows of down that lay by output: of 8 bits at least, if none is asked for."""
    kind = row_type(source, hidden, asked)
    return TensorType.Q8_0 if kind in _FOUR_BITS and not asked else kind


def refuse_rounding_again(layer: int, stored: TensorType, asked: TensorType | None, *, stays: bool) -> None:
    """Raise `HotsetError` where a down stored by neuron would lose accuracy; `stays`: stored so again."""
    again = asked not in (None, stored) and stored in NEURON_TYPES and stored is not TensorType.F16
    if stays and not again:
        return
    as_what = f"as {asked.name.lower()}" if stays and asked else "as it was"
    raise HotsetError(
        f"layer {layer} is stored by neuron already, as {stored.name}: storing it {as_what} would lose "
        "accuracy; convert the original model, or leave --ffn out"
    )
