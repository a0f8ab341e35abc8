"""How a GGUF file says which neurons of each layer are computed: Hotset's keys, and PowerInfer's."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hotset.core.config import Activation, FFNPlan, Score, Way
from hotset.core.errors import CheckpointError
from hotset.formats.gguf_file import GGUFFile
from hotset.formats.keys import Keys
from hotset.formats.tensor_table import TensorTable

WAY, SCORE, CUTOFF, RECALL = (f"hotset.ffn.{key}" for key in ("way", "score", "cutoff", "recall"))
"""Keys: each layer's way, score (empty for none), cut-off and recall."""

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
    """Each layer's plan; None where its down is not stored by neuron."""
    keys = Keys(file.metadata, str(path))
    if file.powerinfer:
        cutoff = keys.number("powerinfer.sparse_threshold", 0.0, low=-1e30)
        plans = [FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, cutoff, raw_input=True)] * layers
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


def plan_keys(plans: Sequence[FFNPlan]) -> dict[str, Any]:
    """The key-values that `read_plans` reads."""
    return {
        WAY: [plan.way.value for plan in plans],
        SCORE: [plan.score.value if plan.score else "" for plan in plans],
        CUTOFF: [plan.cutoff for plan in plans],
        RECALL: [plan.recall for plan in plans],
    }


def _stated_plans(keys: Keys, layers: int) -> list[FFNPlan]:
    ways = _entries(keys, WAY, layers, Way)
    scores = _entries(keys, SCORE, layers, Score, optional=True)
    cutoffs, recalls = _numbers(keys, CUTOFF, layers), _numbers(keys, RECALL, layers)
    if min(recalls) < 0 or max(recalls) > 1:
        raise keys.refuse(RECALL, "numbers from 0 to 1", np.array(recalls))
    plans = []
    for way, score, cutoff, recall in zip(ways, scores, cutoffs, recalls, strict=True):
        if way is None or score not in _SCORES[way]:
            expected = ", ".join(choice.value for choice in _SCORES[way or Way.DENSE] if choice) or "none"
            raise keys.refuse(
                SCORE, f"{expected} where the way is {way and way.value}", score and score.value
            )
        plans.append(FFNPlan(way, score, cutoff, recall if way is Way.PREDICTOR else 0.0))
    return plans


def _numbers(keys: Keys, key: str, layers: int) -> list[float]:
    values = keys.get(key, np.zeros(layers))
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
    if plan.way is Way.EXACT and not activation.zero_producing:
        raise CheckpointError(
            f"{where}: {WAY}: layer {layer} is exact, which needs an activation that produces zeros; found "
            f"{activation.value}"
        )
    if plan.score in (Score.LOW_RANK, Score.LOW_RANK_RELU):
        for part in ("fc1", "fc2"):
            if f"blk.{layer}.{part}.weight" not in table:
                raise CheckpointError(f"{where}: tensor blk.{layer}.{part}.weight is missing")
