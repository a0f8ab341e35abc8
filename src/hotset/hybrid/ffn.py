"""One layer's FFN in two places: built, and computed outside a recorded step."""

from dataclasses import dataclass

import numpy as np

from hotset.backends.building import Backend
from hotset.backends.contract import F32, FFN, Array, BatchView, NeuronFFNSpec
from hotset.backends.cpu import CpuBackend, CpuNeuronFFN
from hotset.core.config import Way
from hotset.hybrid.device import Device, to_device, zeros
from hotset.hybrid.parts import HostFFN, Split
from hotset.hybrid.slices import Spec, cold_slice, hot_slice


def build_split(
    spec: Spec, hot: int, device: Device, host: CpuBackend, index: int = 0, *, gates: bool = False
) -> Split:
    """Build neurons ``[:hot]`` on the device and ``[hot:]`` on the host; `index` is the choosers' number.

    With `gates`, those of the cold neurons are on the device too, where the plan leaves out zeros alone.
    Prompts are computed with the host's.
    """
    cold = cold_slice(spec, hot)
    way = cold.plan.way if isinstance(cold, NeuronFFNSpec) else None
    values = gates and way is Way.EXACT
    predict = None
    if isinstance(cold, NeuronFFNSpec) and way is Way.PREDICTOR:
        predict = device.predictor(cold)
    elif isinstance(cold, NeuronFFNSpec) and values:
        predict = device.gates(cold)
    return Split(
        hot=build_ffn(hot_slice(spec, hot), device.backend, index),
        cold=build_host_ffn(cold, host, index, scores_given=way is Way.PREDICTOR),
        n_hot=hot,
        n_cold=spec.up.weight.shape[0] - hot,
        predict=predict,
        values=values,
        add_normed=device.normed_adder(spec.post_norm) if spec.post_norm else None,
    )


def build_ffn(spec: Spec, backend: Backend, index: int) -> FFN:
    """A whole FFN, or a slice, on one backend."""
    return backend.neuron_ffn(spec, index) if isinstance(spec, NeuronFFNSpec) else backend.ffn(spec)


def build_host_ffn(spec: Spec, host: CpuBackend, index: int, *, scores_given: bool = False) -> HostFFN:
    """A whole FFN, or its cold neurons, on the host."""
    if isinstance(spec, NeuronFFNSpec):
        return host.neuron_ffn(spec, index, scores_given=scores_given)
    return host.ffn(spec)


@dataclass(frozen=True)
class Views:
    """A batch as the parts on either side take it."""

    on_device: BatchView
    on_host: BatchView
    choosing: bool = True
    """Whether any of its spans is not lossless."""


def add_split(split: Split, device: Device, x: Array, out: Array, views: Views) -> None:
    """Add the FFN of x (T, D) to out (T, D), both on the device; the calling thread does the host's part."""
    shape = tuple(x.shape)
    asked = device.pinned(shape, np.float32)
    device.download(x, asked)
    scores = None
    if split.predict and not split.values and views.choosing:
        scores = device.pinned((shape[0], split.n_cold), np.float32)
        device.download(split.predict(x), scores)
    sent = device.mark()

    def cold() -> Array:
        sent.wait()
        return to_device(device, _cold_sum(split.cold, asked, scores, views.on_host, device))

    add = split.add_normed
    total = out if add is None else zeros(device, x.shape)
    split.hot.forward(x, total, views.on_device)
    device.add(cold(), total)
    if add:
        add(total, out)


def _cold_sum(cold: HostFFN, x: F32, scores: F32 | None, view: BatchView, device: Device) -> F32:
    total: F32 = device.pinned(x.shape, np.float32)
    match cold:
        case CpuNeuronFFN():
            cold.forward(x, total, view, scores)
        case _:
            cold.forward(x, total, view)
    return total
