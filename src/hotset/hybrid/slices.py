"""An FFN as two: its hot neurons ``[:hot]`` and its cold ones ``[hot:]``, whose sum it is.

Neither keeps the post-norm, which is the sum's, and the hot one has the bias of down. Weights are cut, never
rounded: rows of gate and up, rows of a down that is stored by neuron, blocks of columns of any other.
"""

from dataclasses import replace
from typing import TypeAlias

from hotset.backends.contract import FFNSpec, Linear, NeuronFFNSpec
from hotset.core.config import FFNPlan, Way
from hotset.core.errors import HotsetError

SLAB = 64
"""Neurons are placed in slabs of so many."""

Spec: TypeAlias = FFNSpec | NeuronFFNSpec


def granule(spec: Spec) -> int:
    """The hot neurons of a layer that is split are a multiple of this: it cuts down between its blocks."""
    return 1 if isinstance(spec, NeuronFFNSpec) else spec.down.weight.type.block_size


def ffn_bytes(spec: Spec) -> int:
    """Bytes of the matrices whose rows or columns are neurons."""
    return sum(linear.weight.nbytes for linear in ffn_matrices(spec))


def ffn_matrices(spec: Spec) -> list[Linear]:
    """Gate, where there is one, up and down."""
    down = spec.down_t if isinstance(spec, NeuronFFNSpec) else spec.down
    return [linear for linear in (spec.gate, spec.up, down) if linear]


def all_computed(spec: Spec) -> Spec:
    """The same FFN, which chooses no neurons."""
    if isinstance(spec, NeuronFFNSpec):
        return replace(spec, plan=FFNPlan(Way.DENSE), predictor=())
    return spec


def hot_slice(spec: Spec, hot: int) -> Spec:
    """Neurons ``[:hot]``, all computed. Raises `HotsetError` where the cut would go through a block."""
    return all_computed(_neurons(spec, 0, hot))


def cold_slice(spec: Spec, hot: int) -> Spec:
    """Neurons ``[hot:]``, chosen by the layer's plan, without the bias of down."""
    return _without_bias(_neurons(spec, hot, spec.up.weight.shape[0]))


def neurons_alone(spec: Spec, start: int, stop: int, *, bias: bool) -> Spec:
    """Neurons ``[start:stop]``, all computed, with the bias of down or without."""
    part = all_computed(_neurons(spec, start, stop))
    return part if bias else _without_bias(part)


def _without_bias(spec: Spec) -> Spec:
    if isinstance(spec, NeuronFFNSpec):
        return replace(spec, down_t=replace(spec.down_t, bias=None))
    return replace(spec, down=replace(spec.down, bias=None))


def _neurons(spec: Spec, start: int, stop: int) -> Spec:
    size, step = spec.up.weight.shape[0], granule(spec)
    if start % step or (stop % step and stop != size):
        raise HotsetError(
            f"{spec.up.weight.name}: {start or stop} neurons cut through a block of down: expected a "
            f"multiple of {step}"
        )
    gate = spec.gate and _rows(spec.gate, start, stop)
    up = _rows(spec.up, start, stop)
    if isinstance(spec, NeuronFFNSpec):
        down_t = replace(spec.down_t, weight=spec.down_t.weight.rows(start, stop))
        # A low-rank predictor's first matrix belongs to no neuron.
        predictor = (*spec.predictor[:-1], *(_rows(last, start, stop) for last in spec.predictor[-1:]))
        return replace(spec, gate=gate, up=up, down_t=down_t, predictor=predictor, post_norm=None)
    down = replace(spec.down, weight=spec.down.weight.columns(start, stop))
    return replace(spec, gate=gate, up=up, down=down, post_norm=None)


def _rows(linear: Linear, start: int, stop: int) -> Linear:
    bias = None if linear.bias is None else linear.bias[start:stop]
    return Linear(linear.weight.rows(start, stop), bias)
