"""Factors beside matrices in GGUF files, as NVFP4 has them: ``NAME.scale`` multiplies ``NAME.weight``."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from hotset.core.errors import CheckpointError
from hotset.formats.tensor import Tensor
from hotset.formats.tensor_table import DOWN_BY_NEURON, split_name

_SCALE, _OF_INPUT = ".scale", ".input_scale"


def with_scales(where: str, tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The tensors, each matrix with its scale, which is none of them then.

    There is one number, or of experts' matrices one for each. Names in `own` are the architecture's: they
    mean something else. Scales of activations are left out: here each row finds its own. Raises
    `CheckpointError` for another shape, and for numbers that are not finite.
    """
    found = dict(tensors)
    for name, scale in tensors.items():
        if split_name(name)[1] in own:
            continue
        if name.endswith(_OF_INPUT):
            del found[name]
        elif name.endswith(_SCALE) and (matrix := _matrix(name.removesuffix(_SCALE), found)):
            del found[name]
            expected = (matrix.shape[0] if len(matrix.shape) == 3 else 1,)
            if scale.shape != expected:
                raise CheckpointError(
                    f"{where}: tensor {name}: expected shape {list(expected)}, found {list(scale.shape)}"
                )
            factors = scale.to_float32()
            if not np.isfinite(factors).all():
                raise CheckpointError(f"{where}: tensor {name} has numbers that are not finite")
            found[matrix.name] = replace(matrix, scale=factors)
    return found


def _matrix(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The matrix of that name, which may be stored by neuron."""
    start, _, part = name.rpartition(".")
    by_neuron = f"{start}.{DOWN_BY_NEURON[part]}" if part in DOWN_BY_NEURON else name
    return tensors.get(f"{name}.weight", tensors.get(f"{by_neuron}.weight"))
