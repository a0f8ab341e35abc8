"""Arrays that are torch tensors, and the GPU backend's parts, for a GPU and for the interpreter."""

from collections.abc import Callable

import torch

from hotset.backends.contract import F32, Array, Backend, Head, NeuronFFNSpec, Norm
from hotset.backends.gpu import GpuBackend
from hotset.backends.gpu.backend import GpuHead


class TorchArrays:
    """The part of `Device` that has to do with arrays; copies are in stream order where memory is pinned."""

    def __init__(self, torch_device: str) -> None:
        self._gpu = GpuBackend(torch_device)
        self.backend: Backend = self._gpu
        self._torch_device = torch.device(torch_device)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """See `Device`."""
        return torch.empty(shape, dtype=torch.float32, device=self._torch_device)

    def upload(self, x: F32, out: Array) -> None:
        """See `Device`."""
        out.copy_(torch.from_numpy(x), non_blocking=True)

    def download(self, x: Array, out: F32) -> None:
        """See `Device`."""
        torch.from_numpy(out).copy_(x, non_blocking=True)

    def assign(self, x: Array, out: Array) -> None:
        """See `Device`."""
        out.copy_(x)

    def zero(self, out: Array) -> None:
        """See `Device`."""
        out.zero_()

    def add(self, x: Array, out: Array) -> None:
        """See `Device`."""
        out.add_(x)

    def logits(self, head: Head, x: Array) -> Array:
        """See `Device`."""
        if not isinstance(head, GpuHead):
            raise TypeError("the head is another backend's")
        return head.logits(x)

    def normed_adder(self, norm: Norm) -> Callable[[Array, Array], None]:
        """See `Device`."""
        part = self._gpu.norm(norm)
        return lambda x, out: part.forward(x, out, add=True)

    def predictor(self, spec: NeuronFFNSpec) -> Callable[[Array], Array]:
        """See `Device`."""
        scores: Callable[[Array], Array] = self._gpu.predictor(spec).scores
        return scores
