"""How a GGUF file says which neurons of each layer are computed: Hotset's keys, and PowerInfer's."""

import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hotset.core.config import DEFAULT_KEPT, Activation, FFNPlan, Score, Way
from hotset.core.errors import CheckpointError
from hotset.formats.gguf_file import GGUFFile
from hotset.formats.keys import Keys
from hotset.formats.tensor_table import TensorTable

WAY, SCORE, CUTOFF, KEPT, RAW_INPUT = (
    f"hotset.ffn.{key}" for key in ("way", "score", "cutoff", "kept", "raw_input")
)
"""Keys: each layer's way, score (empty for none), cut-off, share of the activation to keep, and whether its
predictor reads the FFN's input before the norm (PowerInfer's; absent: none does)."""

_SCORES = {
    Way.DENSE: (None,),
    Way.EXACT: (None,),
    Way.THRESHOLD: (Score.GATE, Score.DOWN),
    Way.PREDICTOR: (Score.LOW_RANK, Score.LOW_RANK_RELU, Score.GATE_Q4, Score.GATE_Q2),
}

_Choice = TypeVar("_Choice", bound=Enum)


def read_plans(
    file: GGUFFile, path: Path, activation: Activation, table: TensorTable, layers: int
) -> list[FFNPlan | None]:
    """Each layer's plan; None where its down is not stored by neuron.

    Predictors of files that do not say what is to be kept are audited for the default.
    """
    keys = Keys(file.metadata, str(path))
    if file.powerinfer:
        plans = _powerinfer_plans(keys, table, layers)
    elif WAY in file.metadata:
        plans = _stated_plans(keys, layers)
    else:
        plans = [FFNPlan(Way.EXACT if activation.zero_producing else Way.DENSE)] * layers
    for layer, plan in enumerate(plans):
        if table.by_neuron(layer):
            _check(plan, activation, table, layer, str(path))
        elif plan.way is not Way.DENSE and WAY in file.metadata:
            raise CheckpointError(
                f"{path}: {WAY}: layer {layer} is {plan.way.value}, "
                f"but blk.{layer}.ffn_down_t.weight is missing"
            )
    return [plan if table.by_neuron(layer) else None for layer, plan in enumerate(plans)]


def plan_keys(plans: Sequence[FFNPlan | None]) -> dict[str, Any]:
    """The key-values that `read_plans` reads; a layer without a plan is dense."""
    stated = [plan or FFNPlan(Way.DENSE) for plan in plans]
    keys: dict[str, Any] = {
        WAY: [plan.way.value for plan in stated],
        SCORE: [plan.score.value if plan.score else "" for plan in stated],
        CUTOFF: np.array([plan.cutoff for plan in stated], np.float32),
        KEPT: np.array([plan.kept for plan in stated], np.float32),
    }
    if any(plan.raw_input for plan in stated):
        keys[RAW_INPUT] = np.array([plan.raw_input for plan in stated])
    return keys


def plan_notes(file: GGUFFile, plans: Sequence[FFNPlan | None]) -> list[str]:
    """What the user should know about the plans of a file, a line each."""
    exact = [str(layer) for layer, plan in enumerate(plans) if plan and plan.way is Way.EXACT]
    if not file.powerinfer or not exact:
        return []
    return [f"layers without a predictor compute every neuron that is not zero: {', '.join(exact)}"]


def _powerinfer_plans(keys: Keys, table: TensorTable, layers: int) -> list[FFNPlan]:
    """By predictor where a layer has one; its converter drops all that come after a missing file."""
    largest = float(np.finfo(np.float32).max)
    cutoff = keys.number("powerinfer.sparse_threshold", 0.0, low=-math.inf, high=math.inf)
    cutoff = min(max(cutoff, -largest), largest)  # no score is beyond
    predicted = FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, cutoff, DEFAULT_KEPT, raw_input=True)
    names = [[f"blk.{layer}.{part}.weight" for part in ("fc1", "fc2")] for layer in range(layers)]
    return [predicted if all(name in table for name in pair) else FFNPlan(Way.EXACT) for pair in names]


def _stated_plans(keys: Keys, layers: int) -> list[FFNPlan]:
    ways = _entries(keys, WAY, layers, Way)
    scores = _entries(keys, SCORE, layers, Score, optional=True)
    cutoffs, kept = _numbers(keys, CUTOFF, layers), _numbers(keys, KEPT, layers, DEFAULT_KEPT)
    if min(kept) < 0 or max(kept) >= 1:
        raise keys.refuse(KEPT, "numbers from 0 to under 1", np.array(kept))
    raw = keys.get(RAW_INPUT, np.zeros(layers, bool))
    if not isinstance(raw, np.ndarray) or raw.shape != (layers,) or raw.dtype != bool:
        raise keys.refuse(RAW_INPUT, f"true or false for each of {layers} layers", raw)
    plans = []
    for way, score, cutoff, share, unnormed in zip(ways, scores, cutoffs, kept, raw, strict=True):
        if way is None or score not in _SCORES[way]:
            expected = ", ".join(choice.value for choice in _SCORES[way or Way.DENSE] if choice) or "none"
            raise keys.refuse(
                SCORE, f"{expected} where the way is {way and way.value}", score and score.value
            )
        predicted = way is Way.PREDICTOR
        plans.append(FFNPlan(way, score, cutoff, share if predicted else 0.0, predicted and bool(unnormed)))
    return plans


def _numbers(keys: Keys, key: str, layers: int, default: float = 0.0) -> list[float]:
    values = keys.get(key, np.full(layers, default))
    if not isinstance(values, np.ndarray) or values.shape != (layers,) or not np.isfinite(values).all():
        raise keys.refuse(key, f"{layers} numbers, one for each layer", values)
    return [float(value) for value in values]


def _entries(
    keys: Keys, key: str, layers: int, kind: type[_Choice], optional: bool = False
) -> list[_Choice | None]:
    names = keys.get(key, [""] * layers if optional else None)
    if not isinstance(names, list) or len(names) != layers:
        raise keys.refuse(key, f"{layers} names, one for each layer", names)
    choices: dict[str, _Choice | None] = {str(choice.value): choice for choice in kind}
    if optional:
        choices[""] = None
    for name in names:
        if name not in choices:
            raise keys.refuse(key, "one of " + ", ".join(filter(None, choices)), name)
    return [choices[name] for name in names]


def _check(plan: FFNPlan, activation: Activation, table: TensorTable, layer: int, where: str) -> None:
    if plan.way not in (Way.DENSE, Way.EXACT) and f"blk.{layer}.ffn_down_t_exps.weight" in table:
        raise CheckpointError(
            f"{where}: {WAY}: layer {layer}: expected dense or exact in a mixture of experts, found "
            f"{plan.way.value}"
        )
    if plan.way is Way.EXACT and not activation.zero_producing:
        raise CheckpointError(
            f"{where}: {WAY}: layer {layer} is exact, which needs an activation that produces zeros; found "
            f"{activation.value}"
        )
    if plan.score in (Score.LOW_RANK, Score.LOW_RANK_RELU):
        for part in ("fc1", "fc2"):
            if f"blk.{layer}.{part}.weight" not in table:
                raise CheckpointError(f"{where}: tensor blk.{layer}.{part}.weight is missing")
