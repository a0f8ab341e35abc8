"""Prompts of many tokens: cold weights on the device for as long as their layer takes, one after the other.

Two pinned buffers and two parts on the device take turns. While the device computes a layer, a thread copies
the next layer's cold neurons into the free buffer and, on the device's second stream, to the device.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotset.backends.base import FFN, Linear, NeuronFFNSpec
from hotset.formats.tensor import Tensor
from hotset.hybrid.device import Device, Event
from hotset.hybrid.ffn import build_ffn
from hotset.hybrid.slices import Spec, all_computed, ffn_matrices

_ALIGNMENT = 64


class ColdStream:
    """Layers' cold weights, in the layers' order; `specs` make those of each layer when they are needed."""

    def __init__(self, device: Device, specs: Sequence[Callable[[], Spec]], largest: int) -> None:
        self._device = device
        self._specs = specs
        self._staging = [device.pinned((largest,), np.uint8) for _ in range(2)]

    @contextmanager
    def layers(self) -> Iterator[Iterator["StreamedFFN"]]:
        """The layers' parts for one walk through the model; each is valid until the next one is asked for.

        Whatever happens within, no copy is under way afterwards.
        """
        with ThreadPoolExecutor(1, "hotset-copies") as copier:
            try:
                yield self._walk(copier)
            finally:
                self._device.synchronize()
                copier.shutdown(cancel_futures=True)

    def _walk(self, copier: ThreadPoolExecutor) -> Iterator["StreamedFFN"]:
        count = len(self._specs)
        coming = [copier.submit(self._copy, i, None) for i in range(min(2, count))]
        for i in range(count):
            part = coming[i % 2].result()
            self._device.follow(part.copied)
            yield part
            used = self._device.mark()
            if i + 2 < count:
                coming[i % 2] = copier.submit(self._copy, i + 2, used)

    def _copy(self, i: int, used: Event | None) -> "StreamedFFN":
        """Layer i to the device, once what lay in its place has been used."""
        if used:
            used.wait()
        spec = _staged(self._specs[i](), self._staging[i % 2])
        with self._device.guard(), self._device.aside():
            part = build_ffn(spec, self._device.backend)
            return StreamedFFN(part, self._device.mark())


class StreamedFFN:
    """A part on the device and the end of its copy."""

    def __init__(self, part: FFN, copied: Event) -> None:
        self.part = part
        self.copied = copied


def streamed_bytes(spec: Spec) -> int:
    """Room that a layer's cold weights take in the pinned buffer."""
    return sum(-(-linear.weight.nbytes // _ALIGNMENT) * _ALIGNMENT for linear in ffn_matrices(spec))


def _staged(spec: Spec, staging: NDArray[np.uint8]) -> Spec:
    """The same FFN, all neurons computed, with its weights in the buffer."""
    used = 0

    def stage(linear: Linear) -> Linear:
        nonlocal used
        source = linear.weight
        room = staging[used : used + source.nbytes]
        np.copyto(room, source.data)
        used += -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
        return Linear(Tensor(source.name, source.type, source.shape, room), linear.bias)

    gate, up = spec.gate and stage(spec.gate), stage(spec.up)
    if isinstance(spec, NeuronFFNSpec):
        return all_computed(replace(spec, gate=gate, up=up, down_t=stage(spec.down_t)))
    return replace(spec, gate=gate, up=up, down=stage(spec.down))
