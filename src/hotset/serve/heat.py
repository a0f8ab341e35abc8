"""What fires in a model that answers requests, and where its weights lie: for the server's page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hotset.backends.cpu import CpuNeuronFFN
from hotset.backends.cpu.experts import CpuExperts
from hotset.backends.cpu.parts import COUNTED
from hotset.core.config import ExpertsConfig, Way
from hotset.hybrid.parts import OnDevice, OnHost, Split, SplitExperts
from hotset.hybrid.transformer import HybridTransformer
from hotset.serve.load import open_model
from hotset.serve.loaded import Model

COLUMNS = 128
"""Groups of neighbours that a layer's units are told in, at most."""


@dataclass(frozen=True)
class LayerHeat:
    """One layer's FFN: its units, neurons or experts, in groups of neighbours (the last may have fewer)."""

    kind: str
    """``neurons`` or ``experts``, of which some are computed for a token; ``dense``: all always are, or there
    is no FFN (0 units)."""
    units: int
    column: int
    """Units of a group."""
    unit_bytes: int = 0
    """Of the weights that are not read for a unit that is left out."""
    rows: int = 0
    """Tokens for which units were chosen, of all requests so far."""
    computed: int = 0
    """Units computed for them; neurons on a device, which computes all that it has, are left out."""
    fired: tuple[int, ...] = ()
    """Of each group, units that fired (were not zero, were selected), summed over these tokens."""
    on_device: int = 0
    """The first so many units lie on a device and are not counted."""
    resident: tuple[int, ...] | None = None
    """Of each group of experts, how many lie on a device now; these are not counted. None: none do."""
    in_memory: tuple[int, ...] | None = None
    """Of each group of experts, how many are in main memory; others are on a device or in the file."""
    profile: tuple[float, ...] | None = None
    """Of each group, the share of tokens for which its units fired when the file was made; None: not told."""


@dataclass(frozen=True)
class Heat:
    """All layers; bytes of the weights by where they lie."""

    layers: tuple[LayerHeat, ...]
    device: int
    memory: int
    file: int
    weights: int
    """Bytes of all."""
    note: str | None
    """Why nothing is left out, where nothing is."""


def heat(model: Model) -> Heat:
    """What a model has done so far. Any thread may ask, at any time; reads the file the first time."""
    profiles = _profiles(model.path)
    transformer = model.transformer
    if isinstance(transformer, HybridTransformer):
        ffns: list[object] = [layer.ffn for layer in transformer.parts]
    else:
        ffns = [layer.ffn for layer in transformer.layers]
    told = tuple(
        _layer(model, i, ffn, profile) for i, (ffn, profile) in enumerate(zip(ffns, profiles, strict=True))
    )
    device = 0
    if model.plan:
        uses = model.plan.layers
        device = sum(use.attention_bytes + use.neuron_bytes + use.predictor_bytes for use in uses)
        device += model.plan.head_bytes
    file = max(0, model.traffic.experts - model.backend.packed_experts.nbytes)
    weights = model.traffic.weights
    return Heat(told, device, max(0, weights - device - file), file, weights, _note(model))


def _layer(model: Model, i: int, ffn: object, profile: tuple[float, ...] | None) -> LayerHeat:
    config = model.config.layers[i]
    units, hot = model.config.units(i), 0
    resident: Sequence[int] = ()
    match ffn:
        case OnHost(part=part):
            ffn = part
        case OnDevice():
            hot = units
        case Split(cold=cold, n_hot=n_hot):
            ffn, hot = cold, n_hot
        case SplitExperts(cold=cold, resident=on_device):
            ffn, resident = cold, tuple(on_device.resident)
    if config.experts:
        return _experts(model, config.experts, ffn, resident, profile)
    if isinstance(ffn, CpuNeuronFFN) and config.ffn and config.ffn.way is not Way.DENSE:
        column = COUNTED * -(-units // (COUNTED * COLUMNS))
        tally = ffn.tally
        fired = [0] * (hot // COUNTED) + tally.fired  # counted from the first one that is not on a device
        return LayerHeat(
            "neurons",
            units,
            column,
            model.traffic.by_neuron[i],
            tally.rows,
            tally.chosen,
            _sums(fired, column // COUNTED),
            hot,
            profile=_means(profile, column),
        )
    column = max(1, -(-units // COLUMNS))
    return LayerHeat("dense", units, column, on_device=hot, profile=_means(profile, column))


def _experts(
    model: Model,
    shape: ExpertsConfig,
    ffn: object,
    resident: Sequence[int],
    profile: tuple[float, ...] | None,
) -> LayerHeat:
    units, used = shape.count, shape.used
    column = -(-units // COLUMNS)
    rows, of, packed = ffn.uses if isinstance(ffn, CpuExperts) else (0, [0] * units, [False] * units)
    experts = sum(layer.experts.count for layer in model.config.layers if layer.experts)
    return LayerHeat(
        "experts",
        units,
        column,
        model.traffic.experts // experts,
        rows,
        rows * used,
        _sums(of, column),
        resident=_sums([int(i in resident) for i in range(units)], column) if resident else None,
        in_memory=_sums([int(one) for one in packed], column),
        profile=_means(profile, column),
    )


def _sums(counts: Sequence[int], column: int) -> tuple[int, ...]:
    return tuple(sum(counts[start : start + column]) for start in range(0, len(counts), column))


def _means(profile: tuple[float, ...] | None, column: int) -> tuple[float, ...] | None:
    if profile is None:
        return None
    groups = range(0, len(profile), column)
    return tuple(round(float(np.mean(profile[start : start + column])), 4) for start in groups)


@lru_cache(maxsize=4)
def _profiles(path: Path) -> list[tuple[float, ...] | None]:
    """How often each layer's units fired when the file was made."""
    checkpoint = open_model(path)
    tensors = [
        checkpoint.tensors.get(f"blk.{i}.ffn_profile.weight") for i in range(checkpoint.config.n_layers)
    ]
    return [None if tensor is None else tuple(tensor.to_float32()[0].tolist()) for tensor in tensors]


def _note(model: Model) -> str | None:
    config = model.config
    if config.mixture or model.chooses_neurons:
        return None
    if any(layer.ffn for layer in config.layers):
        return (
            "This file is stored by neuron, but it is run so that every neuron is computed for every token."
        )
    name = config.activation.value.upper()
    why = (
        f"Its activation, {name}, makes most neurons exactly zero: hotset convert makes a file of it that "
        "leaves these out, and answers the same."
        if config.activation.zero_producing
        else f"Its activation, {name}, never makes a neuron exactly zero, so leaving some out changes "
        "answers a little: hotset calibrate makes a file that does so, within a limit that you name."
    )
    return f"Every neuron is computed for every token: this file is not stored by neuron. {why}"
