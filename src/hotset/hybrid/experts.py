"""A mixture in two places: built, and computed outside a recorded step."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hotset.backends.contract import Array, ExpertsSpec
from hotset.backends.cpu import CpuBackend
from hotset.hybrid.device import AddNormed, Device, to_device, zeros
from hotset.hybrid.parts import SplitExperts


def build_split_experts(
    spec: ExpertsSpec, resident: Sequence[int], device: Device, host: CpuBackend, index: int = 0
) -> SplitExperts:
    """Build router, shared expert and some experts on the device; on the host all, packed when used."""
    plain = replace(spec, post_norm=None, beside=None, joined_norm=None)
    stacks = [linear for linear in (spec.gate, spec.up, spec.down) if linear]
    return SplitExperts(
        resident=device.resident_experts(plain, resident),
        cold=host.experts(replace(plain, shared=None), index),
        count=spec.shape.count,
        expert_bytes=sum(linear.weight.nbytes for linear in stacks) // spec.shape.count,
        add_normed=_adder(spec, device),
    )


def _adder(spec: ExpertsSpec, device: Device) -> AddNormed | None:
    """What comes after the sum of the experts: a norm, and an FFN beside them with a norm of both."""
    own = device.normed_adder(spec.post_norm) if spec.post_norm else None
    if not spec.beside or not spec.joined_norm:
        return own
    ffn, add_joined = device.backend.ffn(spec.beside), device.normed_adder(spec.joined_norm)

    def add(total: Array, out: Array) -> None:
        """`out` is still what the mixture has read."""
        both = zeros(device, total.shape)
        (own or device.add)(total, both)
        ffn.forward(out, both, None)
        add_joined(both, out)

    return add


def add_split_experts(split: SplitExperts, device: Device, x: Array, out: Array, weights: Array) -> None:
    """Add the mixture of x (T, D) to out (T, D), by weights (T, E), all three on the device.

    The calling thread does the host's part.
    """
    asked = device.pinned(tuple(x.shape), np.float32)
    selection = device.pinned((len(x), split.count), np.float32)
    device.download(x, asked)
    device.download(split.resident.for_host(weights), selection)
    sent = device.mark()
    total = zeros(device, x.shape) if split.add_normed else out
    split.resident.add(x, total, weights)
    sent.wait()
    answer = device.pinned(tuple(x.shape), np.float32)
    split.cold.add(asked, answer, selection)
    device.add(to_device(device, answer), total)
    if split.add_normed:
        split.add_normed(total, out)
