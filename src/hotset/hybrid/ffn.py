"""One layer's FFN in two places: hot neurons on the device, cold neurons on the CPU, summed."""

from collections.abc import Callable

import numpy as np

from hotset.backends.contract import (
    F32,
    FFN,
    Array,
    Backend,
    NeuronFFNSpec,
)
from hotset.backends.cpu import CpuBackend, CpuFFN, CpuNeuronFFN, CpuView
from hotset.core.config import Way
from hotset.hybrid.device import Device, to_device
from hotset.hybrid.slices import Spec, cold_slice, hot_slice


class HybridFFN:
    """Neurons ``[:hot]`` on the device, all computed, and ``[hot:]`` on the host, by the layer's plan.

    It equals the FFN that computes all neurons wherever the plan leaves out none that is not zero. The
    device also predicts, in layers whose plan has a predictor, which cold neurons the host should compute:
    it sends their scores with the input. The host, which moves the cut-off, holds them against it.
    """

    def __init__(self, spec: Spec, hot: int, device: Device, host: CpuBackend, index: int = 0) -> None:
        self.device = device
        self.add_normed = device.normed_adder(spec.post_norm) if spec.post_norm else None
        self.n_hot, self.n_cold = hot, spec.up.weight.shape[0] - hot
        self.hot = build_ffn(hot_slice(spec, hot), device.backend)
        cold = cold_slice(spec, hot)
        self.predictor: Callable[[Array], Array] | None = None
        if isinstance(cold, NeuronFFNSpec) and cold.plan.way is Way.PREDICTOR:
            self.predictor = device.predictor(cold)
            self.cold: CpuNeuronFFN | CpuFFN = host.neuron_ffn(cold, index, scores_given=True)
        else:
            self.cold = host.neuron_ffn(cold, index) if isinstance(cold, NeuronFFNSpec) else host.ffn(cold)

    def forward(self, x: Array, out: Array, view: CpuView) -> None:
        """See `FFN`; x and out are on the device, the view and the calling thread are the host's."""
        device, shape = self.device, tuple(x.shape)
        at_host = device.pinned(shape, np.float32)
        device.download(x, at_host)
        scores = None
        if self.predictor and not all(lossless for _, _, lossless in view.spans):
            scores = device.pinned((shape[0], self.n_cold), np.float32)
            device.download(self.predictor(x), scores)
        sent = device.mark()

        def cold() -> Array:
            sent.wait()
            y = device.pinned(shape, np.float32)
            if isinstance(self.cold, CpuNeuronFFN):
                self.cold.forward(at_host, y, view, scores)
            else:
                self.cold.forward(at_host, y)
            return to_device(device, y)

        self.add(x, out, cold)

    def add(self, x: Array, out: Array, cold: Callable[[], Array]) -> None:
        """Add the FFN of x to out; `cold` brings the cold neurons' sum (T, D) to the device meanwhile."""
        device = self.device
        total = out
        if self.add_normed:
            total = device.empty(tuple(x.shape))
            device.zero(total)
        self.hot.forward(x, total, None)
        device.add(cold(), total)
        if self.add_normed:
            self.add_normed(total, out)

    def neurons(self, x: Array, gate: F32, h: F32) -> None:
        """See `FFN`."""
        device, tokens = self.device, len(gate)
        at_host = device.pinned(tuple(x.shape), np.float32)
        device.download(x, at_host)
        device.synchronize()
        for part, source, first, size in (
            (self.hot, x, 0, self.n_hot),
            (self.cold, at_host, self.n_hot, self.n_cold),
        ):
            pre, values = np.empty((tokens, size), np.float32), np.empty((tokens, size), np.float32)
            part.neurons(source, pre, values)
            gate[:, first : first + size], h[:, first : first + size] = pre, values


def build_ffn(spec: Spec, backend: Backend, index: int = 0) -> FFN:
    """A whole FFN, or a slice, on one backend."""
    return backend.neuron_ffn(spec, index) if isinstance(spec, NeuronFFNSpec) else backend.ffn(spec)
