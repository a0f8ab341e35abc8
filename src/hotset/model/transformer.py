"""The decoder: embedding, layers, head.

It knows nothing of files, requests and sampling, nor of how a backend computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import (
    DENSE_TOKENS,
    F32,
    FFN,
    Array,
    Attention,
    Backend,
    Embedding,
    Head,
    KVCache,
)
from hotset.core.config import ModelConfig
from hotset.core.errors import RequestError

# Long prompts are cut into slices of so many tokens: enough to read each weight seldom, few enough that the
# activations between two layers stay small.
SLICE = 512

SINK_TOKENS = 8
"""At so many first positions of a sequence, neurons are left out only where they are zero: all later tokens
attend to them (attention sinks, arXiv 2309.17453)."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer; each part has its own norms inside."""

    attention: Attention
    ffn: FFN


class Transformer:
    """A model ready to run; built by `hotset.model.build.build_transformer`.

    It is immutable: all that a sequence has of its own is in its `KVCache`.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        embedding: Embedding,
        layers: Sequence[Layer],
        head: Head,
    ) -> None:
        self.config = config
        self.backend = backend
        self.embedding = embedding
        self.layers = tuple(layers)
        self.head = head

    def kv_cache(self, capacity: int, type: str = "f16") -> KVCache:
        """An empty KV cache for one sequence of up to `capacity` tokens.

        `type` is ``f16``, ``q8_0`` or ``f32``.
        """
        c = self.config
        return self.backend.kv_cache(
            n_layers=c.n_layers, n_kv_heads=c.n_kv_heads, head_dim=c.head_dim, capacity=capacity, type=type
        )

    def forward(
        self,
        tokens: NDArray[np.int32],
        kv: KVCache,
        *,
        prompt: bool = False,
        all_logits: bool = False,
    ) -> F32:
        """Append tokens (T,), T >= 1, to the sequence in `kv`, and predict what follows.

        Layers choose neurons by an approximate plan only for few tokens (`DENSE_TOKENS`) that are no
        `prompt` and begin after the sequence's first positions (`SINK_TOKENS`). Returns the logits (1, V)
        after the last token, or with `all_logits` (T, V) after each. Raises `RequestError` if the cache has
        no room for them.
        """
        room = kv.capacity - kv.length
        if not 0 < len(tokens) <= room:
            raise RequestError(
                f"{len(tokens)} tokens to append to {kv.length}: expected 1 to {room}, as the context has "
                f"{kv.capacity}; shorten the prompt or ask for a larger context"
            )
        dense = prompt or kv.length < SINK_TOKENS or len(tokens) > DENSE_TOKENS
        logits = []
        for start in range(0, len(tokens), SLICE):
            x = self._hidden(tokens[start : start + SLICE], kv, dense)
            if all_logits:
                logits.append(self.head.forward(x))
        if all_logits:
            return logits[0] if len(logits) == 1 else np.concatenate(logits)
        return self.head.forward(x if len(x) == 1 else x[-1:])

    def _hidden(self, tokens: NDArray[np.int32], kv: KVCache, dense: bool) -> Array:
        """One slice through all layers: hidden vectors (T, D). `dense` as in `FFN.forward`."""
        parallel = self.config.parallel
        x = self.embedding.forward(tokens, kv.length)
        for i, layer in enumerate(self.layers):
            # Both parts read x and add to out. One after the other, out is x itself, so the FFN reads what
            # the attention has added; in parallel it is a copy, so the FFN reads what the attention read.
            out = self.backend.copy(x) if parallel else x
            layer.attention.forward(x, out, kv, i)
            layer.ffn.forward(x, out, dense)
            x = out
        kv.advance(len(tokens))
        return x
