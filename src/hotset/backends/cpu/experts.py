"""Mixtures of experts: their native parts, made of specs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hotset import _native
from hotset.backends.blocks import dequantise, neuron_type, store_as
from hotset.backends.checks import check_exact, check_gate, check_shape
from hotset.backends.codebooks import native_type
from hotset.backends.contract import F32, ExpertsSpec, Linear, Norm
from hotset.backends.cpu.file_mapping import is_file_mapping
from hotset.core.config import ExpertsConfig, FFNPlan, Gating, Way
from hotset.core.errors import CheckpointError
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array

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
        logits = np.empty((len(x), self._count), np.float32)
        self.native.route(x, logits)
        return logits

    def forward(self, x: F32, out: F32, view: _native.Batch | None = None, logits: F32 | None = None) -> None:
        self.native.forward(x, out, logits, view)

    def select(self, x: F32, logits: F32 | None = None) -> F32:
        weights = np.empty((len(x), self._count), np.float32)
        self.native.select(x, logits, weights)
        return weights

    def add(self, x: F32, out: F32, weights: F32) -> None:
        """All rows are lossless."""
        self.native.add(x, out, weights)

    def fired(self, x: F32, weights: F32) -> F32:
        counts = np.empty((len(x), self._count), np.float32)
        self.native.fired(x, weights, counts)
        return counts

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        """Of all experts (T, E F), zeros for those that a row does not use."""
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
    norm: Callable[[Norm], _native.Norm],
    activation: int,
    beside: _native.FFN | None,
    index: int,
    threads: int,
) -> CpuExperts:
    """A layer's part; `activation` is a native number. `CheckpointError` for shapes that do not fit.

    With a plan, up (where there is a gate) and down are read by row; where single rows of their type cannot
    be, all experts' are rounded to the nearest type of which they can, in memory.
    """
    hidden, shape, name = spec.norm.weight.size, spec.shape, spec.up.weight.name
    check_gate(name, spec.activation, spec.gate)
    up, down, rows, cols = spec.up, spec.down, hidden, shape.size
    added = by_row = None
    if plan := spec.plan:
        _check_plan(plan, spec)
        up = _by_row(up, threads) if spec.gate else up
        down, rows, cols = _by_row(down, threads), shape.size, hidden
        added, by_row = 1, 0 if spec.gate else None
    native = _native.Experts(
        runtime=runtime,
        cache=cache,
        norm=norm(spec.norm),
        router=linear(_in_floats(spec.router), shape.count, hidden),
        routing=_routing(spec),
        gate=_expert_matrix(spec.gate, shape, shape.size, hidden) if spec.gate else None,
        up=_expert_matrix(up, shape, shape.size, hidden, by_row),
        down=_expert_matrix(down, shape, rows, cols, added),
        activation=activation,
        shared=_shared_expert(spec, linear),
        post_norm=norm(spec.post_norm) if spec.post_norm else None,
        router_norm=norm(spec.router_norm) if spec.router_norm else None,
        beside=beside,
        joined_norm=norm(spec.joined_norm) if spec.joined_norm else None,
        everything=bool(plan and plan.way is Way.DENSE),
        index=index,
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
    for what, numbers in (("selection bias", bias), ("factors", spec.factors)):
        if numbers is not None:
            check_shape(f"{name}: {what}", numbers.shape, (shape.count,))
    return _native.Routing(
        count=shape.count,
        used=shape.used,
        gating=_GATINGS[shape.gating],
        normalised=shape.normalised,
        scale=shape.scale,
        groups=shape.groups,
        groups_used=shape.groups_used,
        bias=bias,
        factors=spec.factors,
    )


def _in_floats(linear: Linear) -> Linear:
    """The matrix in a type of floats, so that products with it are taken in float32."""
    weight = linear.weight
    if weight.type in (TensorType.F32, TensorType.F16, TensorType.BF16):
        return linear
    return Linear(tensor_from_array(weight.name, weight.to_float32()), linear.bias)


def _check_plan(plan: FFNPlan, spec: ExpertsSpec) -> None:
    """Refuse what experts cannot do."""
    name = spec.down.weight.name
    if plan.way not in (Way.DENSE, Way.EXACT):
        raise CheckpointError(f"{name}: expected experts that are dense or exact, found {plan.way.value}")
    check_exact(name, spec.activation, plan)


def _by_row(linear: Linear, threads: int) -> Linear:
    """The experts' matrices in a type of which single rows can be read."""
    weight = linear.weight
    type = neuron_type(weight.type, weight.shape[-1])
    if type is weight.type and weight.scale is None:
        return linear
    parts = [
        store_as(weight.name, dequantise(weight.part(expert)), type, threads).data
        for expert in range(weight.shape[0])
    ]
    return Linear(Tensor(weight.name, type, weight.shape, np.concatenate(parts)), linear.bias)


def _expert_matrix(
    linear: Linear, shape: ExpertsConfig, rows: int, cols: int, use: int | None = None
) -> _native.ExpertMatrix:
    """One matrix (rows, cols) of each expert; it is read when an expert is packed.

    `use`: single rows are, to be multiplied (0) or added up (1), and a bias belongs to what comes out.
    """
    weight, bias = linear.weight, linear.bias
    check_shape(weight.name, weight.shape, (shape.count, rows, cols))
    if bias is not None:
        check_shape(f"{weight.name}: bias", bias.shape, (shape.count, cols if use == 1 else rows))
    data = weight.data  # of stacks a copy
    return _native.ExpertMatrix(
        native_type(weight.type),
        shape.count,
        rows,
        cols,
        data,
        is_file_mapping(data),
        None if bias is None else np.ascontiguousarray(bias).reshape(-1),
        use,
        weight.scale,
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
