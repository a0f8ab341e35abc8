"""Memory on the device that FFNs take turns in."""

from typing import Any

import torch

from hotset.backends.contract import FFNSpec, NeuronFFNSpec
from hotset.backends.gpu.device import Gpu
from hotset.backends.gpu.ffn import GpuFFN, GpuNeuronFFN

_ALIGNMENT = 256


class GpuSlot:
    """Room for one FFN, that of the largest so far; it stays where it is until a larger one comes.

    Weights are laid out elsewhere and copied here, all in the order of the current stream. It is the
    caller's to see that this stream has waited for whatever reads the FFN before.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._memory = gpu.empty(0, dtype=torch.uint8)

    def fill(self, spec: FFNSpec | NeuronFFNSpec) -> GpuFFN:
        """Build an FFN in the place of the one before."""
        part = GpuNeuronFFN(self._gpu, spec) if isinstance(spec, NeuronFFNSpec) else GpuFFN(self._gpu, spec)
        places = _places(part)
        end = max(place.stop for _, place in places.values())
        if end > len(self._memory):
            self._memory = self._gpu.empty(end, dtype=torch.uint8)
        moved: dict[int, Any] = {}

        def move(array: Any) -> Any:
            if id(array) not in moved:
                place = self._memory[places[id(array)][1]].view(array.dtype).view(array.shape)
                place.copy_(array)
                moved[id(array)] = place
            return moved[id(array)]

        part.move(move)
        return part


def _places(part: GpuFFN) -> dict[int, tuple[Any, slice]]:
    """Each of a part's arrays, and its bytes in a run of all, by its identity."""
    places: dict[int, tuple[Any, slice]] = {}
    end = 0

    def place(array: Any) -> Any:
        nonlocal end
        if id(array) not in places:
            nbytes = array.numel() * array.element_size()
            places[id(array)] = array, slice(end, end + nbytes)
            end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return array

    part.move(place)
    return places
