"""Mixtures of experts stored by neuron: experts hottest first, each one's down transposed.

What single rows are read of is stored again: up where there is a gate, and down. An expert's neurons stay
in their order. The router's rows, and what is added when it selects, follow the experts.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hotset.backends.blocks import dequantise, store_as
from hotset.convert.stored_types import refuse_rounding_again, row_type, transposed_type
from hotset.core.config import ExpertsConfig, FFNPlan
from hotset.core.errors import HotsetError
from hotset.formats.gguf_writer import NewTensor, same_tensor
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array

_UP = ("ffn_up_exps.weight", "ffn_gate_up_exps.weight")
_SORTED = frozenset(
    {
        *("ffn_gate_inp.weight", "ffn_gate_inp.bias", "exp_probs_b.bias", "exp_probs_b"),
        *("ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_gate_up_exps.bias", "ffn_down_exps.bias"),
        *("ffn_gate_exps.scale", "ffn_up_exps.scale", "ffn_gate_up_exps.scale", "ffn_down_exps.scale"),
        *("ffn_gate_exps.weight", "ffn_down_exps.weight", "ffn_down_t_exps.weight", *_UP),
    }
)
"""Tensors whose first axis is the experts."""


class ExpertsLayer:
    """One layer's mixture, from the source's tensors to the new ones."""

    def __init__(
        self,
        number: int,
        plan: FFNPlan | None,
        shape: ExpertsConfig,
        hidden: int,
        gated: bool,
        source: Mapping[str, Tensor],
        order: NDArray[np.int64],
        heat: NDArray[np.float32],
        ffn_type: TensorType | None,
        threads: int,
    ) -> None:
        self.number = number
        self.stored = plan is not None
        # A group of experts is selected as a whole.
        self.order = order if plan and shape.groups == 1 else np.arange(shape.count)
        self.heat = heat[:, self.order]
        self.threads = threads
        self.down_error = 0.0
        self.changed: set[tuple[TensorType, TensorType]] = set()
        self._gated, self._hidden, self._ffn_type = gated, hidden, ffn_type
        stored = source.get(f"blk.{number}.ffn_down_t_exps.weight")
        if stored is not None:
            refuse_rounding_again(number, stored.type, ffn_type, stays=plan is not None)
        if ffn_type and hidden % ffn_type.block_size:
            raise HotsetError(
                f"--ffn {ffn_type.name.lower()} needs a hidden size of a multiple of {ffn_type.block_size}, "
                f"and the model's is {hidden}: use --ffn f16"
            )

    def rewritten(self, part: str, tensor: Tensor) -> list[NewTensor] | None:
        """What takes the place of one of the source's tensors; None: itself."""
        if part == "ffn_profile.weight":
            return []
        asked, of_rows = self._ffn_type, row_type(tensor.type, self._hidden, self._ffn_type)
        if not self.stored or part not in _SORTED:
            return None
        if part == "ffn_down_exps.weight":
            return [self._down(tensor, transposed_type(tensor.type, self._hidden, asked), transposed=True)]
        if part == "ffn_down_t_exps.weight":
            return [self._down(tensor, self._noted(tensor.type, of_rows), transposed=False)]
        by_row = self._gated and part in _UP
        return [self._sorted(tensor, self._noted(tensor.type, of_rows) if by_row else tensor.type)]

    def additions(self) -> list[NewTensor]:
        """Tensors that the source has no place for."""
        if not self.stored:
            return []
        return [same_tensor(tensor_from_array(f"blk.{self.number}.ffn_profile.weight", self.heat))]

    def _noted(self, old: TensorType, new: TensorType) -> TensorType:
        if new is not old:
            self.changed.add((old, new))
        return new

    def _sorted(self, tensor: Tensor, kind: TensorType) -> NewTensor:
        """The experts' parts in order, as their bytes where the type stays."""

        def chunks() -> Iterator[NDArray[np.uint8]]:
            for expert in self.order.tolist():
                part = tensor.part(expert)
                if kind is tensor.type:
                    yield part.data
                else:
                    yield store_as(tensor.name, dequantise(part), kind, self.threads).data

        return NewTensor(tensor.name, tensor.shape, kind, chunks)

    def _down(self, tensor: Tensor, kind: TensorType, *, transposed: bool) -> NewTensor:
        """Down (E, F, D), rounded again where its type or its axes change, and by how much it changed."""
        if kind is tensor.type and not transposed:
            return self._sorted(tensor, kind)

        def chunks() -> Iterator[NDArray[np.uint8]]:
            error = total = 0.0
            for expert in self.order.tolist():
                exact = dequantise(tensor.part(expert))
                exact = np.ascontiguousarray(exact.T) if transposed else exact
                stored = store_as(tensor.name, exact, kind, self.threads)
                error += float(np.square(dequantise(stored) - exact).sum(dtype=np.float64))
                total += float(np.square(exact).sum(dtype=np.float64))
                yield stored.data
            self.down_error = math.hypot(self.down_error, math.sqrt(error / total) if total else 0.0)

        count, *matrix = tensor.shape
        shape = (count, *(reversed(matrix) if transposed else matrix))
        return NewTensor(f"blk.{self.number}.ffn_down_t_exps.weight", shape, kind, chunks)
