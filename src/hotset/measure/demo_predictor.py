"""The demo's predictor: a small low-rank one for every layer, trained on Python's own documentation."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

from hotset.activations.profile import ActivationProfile
from hotset.convert.by_neuron import convert
from hotset.core.config import FFNPlan, Score, Way
from hotset.formats.checkpoint import Checkpoint
from hotset.serve.loaded import Model
from hotset.sparsify.choice import Choice, ffn_bytes
from hotset.sparsify.study import Stage, split, study
from hotset.sparsify.train import find_candidates, matrices

TARGET = 0.95
"""Share of the activation that the chosen neurons keep."""
_BUDGET = 0.5
"""Of the FFN's bytes, the largest predictor; it grows only while that saves bytes."""
_TOKENS = 5000
_WINDOW = 256


@dataclass(frozen=True)
class Predictors:
    """A low-rank predictor for every layer."""

    choices: tuple[Choice, ...]
    tokens: int
    """Read, of which a fifth judged."""
    share: float
    """The predictors' bytes, of the FFNs'."""

    def mean(self, of: Callable[[Choice], float]) -> float:
        """Mean over the layers."""
        return mean(map(of, self.choices))


def obstacle(checkpoint: Checkpoint) -> str:
    """Why no predictors can be trained for a model here, and what to do about it; empty where they can."""
    if find_spec("torch") is None:
        return "training predictors needs torch, which is not installed: pip install 'hotset[train]'"
    if find_spec("pydoc_data") is None:
        return "training predictors needs text, and this Python lacks its documentation (pydoc_data)"
    if (hidden := checkpoint.config.hidden_size) % 32:
        return f"predictors need a hidden size of a multiple of 32, and the model's is {hidden}"
    return ""


def store_with_predictors(
    checkpoint: Checkpoint, model: Model, profile: ActivationProfile, path: Path, stage: Stage
) -> Predictors:
    """Train predictors and write the model with them to `path`; `obstacle` must have found none."""
    window = min(_WINDOW, model.config.context_length)
    ids = model.tokenizer.encode(_text(), parse_special=False)[:_TOKENS]
    windows = split([ids], [], window, None, _TOKENS)
    plan = FFNPlan(Way.PREDICTOR, Score.GATE_Q4)
    with study(checkpoint, model.transformer, profile, path, None, plan, stage) as studied:
        found, _ = find_candidates(studied, windows, target=TARGET, budget=_BUDGET, stage=stage)
        choices = [min((c for c in layer if c.fc), key=lambda c: c.chosen) for layer in found]
        plans = [choice.plan for choice in choices]
        with stage("Storing with predictors") as bar:
            convert(checkpoint, path, profile, plans, matrices(choices, studied), progress=bar)
        share = sum(c.predictor_bytes for c in choices) / sum(map(ffn_bytes, studied.specs))
    return Predictors(tuple(choices), len(ids), share)


def _text() -> str:
    """What `help("TOPIC")` shows: prose and code, 400 kB, on every computer that has a whole Python."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))
