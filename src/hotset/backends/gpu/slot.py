"""Memory on the device that FFNs take turns in."""

from typing import Any

import torch

from hotset.backends.contract import FFNSpec, NeuronFFNSpec
from hotset.backends.gpu.device import Gpu
from hotset.backends.gpu.ffn import GpuFFN, GpuNeuronFFN, Placed


class GpuSlot:
    """Rooms for one FFN's arrays; each stays where it is until a larger one is needed.

    A matrix is laid out elsewhere and copied here before the next is, all in the order of the current stream.
    It is the caller's to see that this stream has waited for whatever reads the FFN before.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._rooms: list[Any] = []

    def fill(self, spec: FFNSpec | NeuronFFNSpec) -> GpuFFN:
        """Build an FFN in place of the one before."""
        taken = 0

        def place(part: Placed) -> Placed:
            moved: dict[int, Any] = {}  # arrays may be there twice

            def move(array: Any) -> Any:
                nonlocal taken
                if id(array) not in moved:
                    moved[id(array)] = self._room(taken, array)
                    moved[id(array)].copy_(array)
                    taken += 1
                return moved[id(array)]

            part.move(move)
            return part

        if isinstance(spec, NeuronFFNSpec):
            return GpuNeuronFFN(self._gpu, spec, place)
        return GpuFFN(self._gpu, spec, place)

    def _room(self, number: int, array: Any) -> Any:
        """Room for an array."""
        nbytes = array.numel() * array.element_size()
        if number == len(self._rooms):
            self._rooms.append(self._gpu.empty(0, dtype=torch.uint8))
        if nbytes > len(self._rooms[number]):
            self._rooms[number] = self._gpu.empty(nbytes, dtype=torch.uint8)
        return self._rooms[number][:nbytes].view(array.dtype).view(array.shape)
