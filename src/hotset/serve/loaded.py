"""A model in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hotset.core.batch import Sequence, Work
from hotset.core.config import ModelConfig, Way
from hotset.core.errors import RequestError
from hotset.formats.pooling import Pooling
from hotset.model.reading import Traffic
from hotset.model.transformer import Transformer
from hotset.state.kv_types import check_kv_type

if TYPE_CHECKING:
    from hotset.backends.cpu import CpuBackend
    from hotset.placing.planner import Plan
    from hotset.tokenizer import Tokenizer

DEFAULT_CONTEXT = 4096
"""Tokens of context unless asked otherwise: a cache for all that models allow can take gigabytes."""


@dataclass(frozen=True)
class Model:
    """A model in memory, shared by everything that runs it; immutable."""

    path: Path
    transformer: Transformer
    tokenizer: "Tokenizer"
    backend: "CpuBackend"
    traffic: Traffic
    plan: "Plan | None" = None
    """What lies on a device, and how fast that is predicted to be; None where all is the CPU's."""
    pooling: Pooling | None = None
    """How it makes embeddings; None: it was not made for that."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the model was loaded, a line each."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.transformer.config

    @property
    def chooses_neurons(self) -> bool:
        """Whether decoding leaves out neurons, unlike reading a prompt."""
        layers = enumerate(self.config.layers)
        return any(
            layer.ffn and layer.ffn.way is not Way.DENSE and not self._on_device(i) for i, layer in layers
        )

    def work(self, sequence: Sequence) -> list[Work | None]:
        """What each layer has chosen for a sequence so far; None for layers that are not stored by neuron.

        A device computes all the neurons that it has, for the rows for which others chose. What it computes
        of a mixture depends on the router: mixtures beside a device are not counted.
        """
        choosers = zip(self.config.layers, sequence.choosers, strict=True)
        work = [chooser.work if config.ffn and chooser else None for config, chooser in choosers]
        if self.plan is None:
            return work
        rows = max((w.rows for w in work if w), default=0)
        hot = [layer.hot for layer in self.plan.placement.layers]
        work = [None if layer.experts else w for layer, w in zip(self.config.layers, work, strict=True)]
        return [
            w and Work(rows, w.read + n * rows, w.fired, w.chosen + n * rows)
            for w, n in zip(work, hot, strict=True)
        ]

    def _on_device(self, layer: int) -> bool:
        """Whether a layer's neurons are chosen nowhere, or on a device, which is not counted."""
        if self.plan is None:
            return False
        hot = self.plan.placement.layers[layer].hot
        return bool(self.config.layers[layer].experts) or hot == self.config.units(layer)

    def sequence(self, context: int | None = None, kv_type: str = "f16") -> Sequence:
        """Room for `context` tokens: 0 for what the model was trained for; None: that, at most 4096."""
        return self.transformer.sequence(
            check_context(self.config, context), check_kv_type(kv_type, self.config)
        )


def check_context(config: ModelConfig, context: int | None) -> int:
    """The tokens of context to make room for, or `RequestError`; 0 asks for all that the model allows."""
    if context is None:
        return min(config.context_length, DEFAULT_CONTEXT)
    if context == 0:
        return config.context_length
    if not 1 <= context <= config.context_length:
        raise RequestError(
            f"context is {context}: expected 1 to {config.context_length}, which this model was trained "
            "for (--context)"
        )
    return context
