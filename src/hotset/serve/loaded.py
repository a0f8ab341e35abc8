"""A model in memory, and the KV cache that it may have."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hotset.backends.contract import KVCache, NeuronCounts, NeuronFFN
from hotset.core.config import ModelConfig, Way
from hotset.core.errors import RequestError
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
    """What lies on a device, and how fast that is reckoned to be; None where all is the CPU's."""
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
            layer.ffn and layer.ffn.way is not Way.DENSE and not self._wholly_on_device(i)
            for i, layer in layers
        )

    def neuron_counts(self) -> list[NeuronCounts | None]:
        """What each layer has chosen so far; None for layers that are not stored by neuron.

        A layer that is wholly on a device computes all neurons, for the tokens for which others chose.
        """
        pairs = zip(self.config.layers, self.transformer.layers, strict=True)
        counts = [cast(NeuronFFN, layer.ffn).counts() if config.ffn else None for config, layer in pairs]
        if self.plan is None:
            return counts
        chosen = [c.tokens for i, c in enumerate(counts) if c and not self._wholly_on_device(i)]
        tokens = max(chosen, default=0)
        everything = NeuronCounts(tokens, tokens * self.config.ffn_size, 0)
        return [everything if c and self._wholly_on_device(i) else c for i, c in enumerate(counts)]

    def _wholly_on_device(self, layer: int) -> bool:
        return self.plan is not None and self.plan.placement.layers[layer].hot == self.config.ffn_size

    def kv_cache(self, context: int | None = None, kv_type: str = "f16") -> KVCache:
        """Room for `context` tokens: 0 for what the model was trained for; None: that, at most 4096."""
        return self.transformer.kv_cache(
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
