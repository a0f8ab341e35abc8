"""Mixtures of experts: their native parts, made of specs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hotset import _native
from hotset.backends.codebooks import native_type
from hotset.backends.contract import F32, ExpertsSpec, Linear
from hotset.backends.cpu.file_mapping import is_file_mapping
from hotset.backends.cpu.state import CpuView
from hotset.core.config import ExpertsConfig, Gating
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats.tensor import TensorType, tensor_from_array

# As the native enumeration numbers them; a name that it does not have fails here.
_GATINGS = {gating: _native.GATINGS[gating.value] for gating in Gating}


class CpuExperts:
    """One layer's mixture of experts."""

    def __init__(self, native: _native.Experts, count: int) -> None:
        self.native = native
        self._count = count

    @property
    def uses(self) -> tuple[int, list[int], list[bool]]:
        """Rows so far, how many of them used each expert, and which experts are packed in memory."""
        return self.native.uses

    def route(self, x: F32) -> F32:
        """See `Experts`."""
        logits = np.empty((len(x), self._count), np.float32)
        self.native.route(x, logits)
        return logits

    def forward(self, x: F32, out: F32, view: CpuView | None = None, logits: F32 | None = None) -> None:
        """See `Experts`."""
        self.native.forward(x, out, logits)

    def select(self, x: F32, logits: F32 | None = None) -> F32:
        """See `Experts`."""
        weights = np.empty((len(x), self._count), np.float32)
        self.native.select(x, logits, weights)
        return weights

    def add(self, x: F32, out: F32, weights: F32) -> None:
        """See `Experts`."""
        self.native.add(x, out, weights)

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        """See `FFN`: of all experts (T, E F), zeros for those that a row does not use."""
        self.native.neurons(x, gate, h)


@dataclass(frozen=True)
class PackedExperts:
    """Experts of all layers that are packed in memory, and what that took so far."""

    nbytes: int
    experts: int
    packs: int
    """How often an expert was packed."""
    evictions: int
    """How often one was given back to make room."""


LinearOf = Callable[[Linear, int, int], _native.Linear]
"""Packs a matrix of (rows, columns)."""


def build_experts(
    runtime: _native.Runtime,
    cache: _native.ExpertCache,
    spec: ExpertsSpec,
    linear: LinearOf,
    activation: int,
    norm: _native.Norm,
    post_norm: _native.Norm | None,
) -> CpuExperts:
    """A layer's part; `activation` is a native number. `CheckpointError` for shapes that do not fit."""
    hidden, shape, name = spec.norm.weight.size, spec.shape, spec.up.weight.name
    if spec.activation.gated_only and spec.gate is None:
        raise CheckpointError(f"{name}: {spec.activation.value} needs a gate, which these experts have not")
    if spec.plan:
        raise HotsetError(f"{spec.down.weight.name}: the CPU backend has no experts by neuron yet")
    native = _native.Experts(
        runtime=runtime,
        cache=cache,
        norm=norm,
        router=linear(_in_floats(spec.router), shape.count, hidden),
        routing=_routing(spec),
        gate=_expert_matrix(spec.gate, shape, shape.size, hidden) if spec.gate else None,
        up=_expert_matrix(spec.up, shape, shape.size, hidden),
        down=_expert_matrix(spec.down, shape, hidden, shape.size),
        activation=activation,
        shared=_shared_expert(spec, linear),
        post_norm=post_norm,
    )
    return CpuExperts(native, shape.count)


def _routing(spec: ExpertsSpec) -> _native.Routing:
    """The router's rule; `CheckpointError` where its numbers do not fit together."""
    shape, bias = spec.shape, spec.selection_bias
    name = spec.router.weight.name
    if not 1 <= shape.used <= shape.count:
        raise CheckpointError(f"{name}: expected 1 to {shape.count} experts for a row, found {shape.used}")
    if shape.groups < 1 or shape.count % shape.groups or not 1 <= shape.groups_used <= shape.groups:
        raise CheckpointError(
            f"{name}: expected groups of the same size, and as many to be used at most, found "
            f"{shape.groups_used} of {shape.groups} groups of {shape.count} experts"
        )
    if shape.groups_used * (shape.count // shape.groups) < shape.used:
        raise CheckpointError(f"{name}: {shape.groups_used} groups have fewer than {shape.used} experts")
    _check_shape(f"{name}: selection bias", bias, (shape.count,))
    return _native.Routing(
        count=shape.count,
        used=shape.used,
        gating=_GATINGS[shape.gating],
        normalised=shape.normalised,
        scale=shape.scale,
        groups=shape.groups,
        groups_used=shape.groups_used,
        bias=bias,
    )


def _in_floats(linear: Linear) -> Linear:
    """The matrix in a type of floats, so that products with it are taken in float32."""
    weight = linear.weight
    if weight.type in (TensorType.F32, TensorType.F16, TensorType.BF16):
        return linear
    return Linear(tensor_from_array(weight.name, weight.to_float32()), linear.bias)


def _expert_matrix(linear: Linear, shape: ExpertsConfig, rows: int, cols: int) -> _native.ExpertMatrix:
    """One matrix (rows, cols) of each expert; it is read when an expert is packed."""
    weight, bias = linear.weight, linear.bias
    expected = (shape.count, rows, cols)
    if weight.shape != expected:
        raise CheckpointError(f"{weight.name}: expected shape {list(expected)}, found {list(weight.shape)}")
    _check_shape(f"{weight.name}: bias", bias, (shape.count, rows))
    return _native.ExpertMatrix(
        native_type(weight.type),
        shape.count,
        rows,
        cols,
        weight.data,
        is_file_mapping(weight.data),
        None if bias is None else np.ascontiguousarray(bias).reshape(-1),
    )


def _shared_expert(spec: ExpertsSpec, linear: LinearOf) -> _native.SharedExpert | None:
    """The expert that every row uses, if there is one."""
    shared, hidden = spec.shared, spec.norm.weight.size
    if shared is None:
        return None
    size = shared.up.weight.shape[0]
    return _native.SharedExpert(
        gate=linear(shared.gate, size, hidden) if shared.gate else None,
        up=linear(shared.up, size, hidden),
        down=linear(shared.down, hidden, size),
        gate_of=linear(shared.switch, 1, hidden) if shared.switch else None,
    )


def _check_shape(name: str, found: F32 | None, expected: tuple[int, ...]) -> None:
    if found is not None and found.shape != expected:
        raise CheckpointError(f"{name}: expected shape {list(expected)}, found {list(found.shape)}")
