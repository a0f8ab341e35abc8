"""The decoder: embedding, layers, head.

It knows nothing of files, requests and sampling, nor of how a backend computes.
"""

from collections.abc import Sequence as ListOf
from dataclasses import dataclass

import numpy as np

from hotset.backends.building import Backend, Chain
from hotset.backends.contract import (
    F32,
    FFN,
    Array,
    BatchView,
    Embedding,
    Experts,
    Head,
    LayerInput,
    LayerInputs,
    Mixer,
    StateShape,
)
from hotset.core.batch import Batch, Sequence
from hotset.core.config import ModelConfig
from hotset.core.errors import HotsetError, RequestError
from hotset.core.heads import KvShape
from hotset.model.finite import is_finite, traced

SLICE = 512
"""Batches of more rows are cut: so many are enough to read each weight seldom, and few enough that the
activations between two layers stay small."""

CHAINED = 8
"""Batches of at most so many rows go through all parts in one call; of more, each part takes long enough for
Ctrl-C to be looked at in between."""

SINK_TOKENS = 8
"""At so many first positions of a sequence, neurons are left out only where they are zero: all later tokens
attend to them (attention sinks, arXiv 2309.17453)."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer; each part has its own norms inside."""

    mixer: Mixer
    ffn: FFN
    early: Experts | None = None
    """The FFN, where its router reads what the mixer reads."""
    own_input: LayerInput | None = None
    """What the layer's own embedding of the tokens adds at its end."""
    scale: float = 1.0
    """Factor on all of it."""

    def forward(self, x: Array, out: Array, view: BatchView, e: Array | None = None) -> None:
        """Both parts read x and add to out, a copy of x in parallel layers, else x itself.

        `e` (T, P) is the layer's own embedding of the tokens, where there is one.
        """
        if self.early:
            logits = self.early.route(x)
            self.mixer.forward(x, out, view)
            self.early.forward(x, out, view, logits)
        else:
            self.mixer.forward(x, out, view)
            self.ffn.forward(x, out, view)
        if self.own_input:
            self.own_input.forward(out, e, out)
        if self.scale != 1:
            out *= self.scale


class Absent:
    """The part that a layer has not: it adds nothing."""

    def forward(self, x: Array, out: Array, view: BatchView) -> None:
        """Add nothing."""

    def neurons(self, x: Array, gate: F32, h: F32) -> None:
        """None fires."""
        gate[:], h[:] = 0, 0


class Transformer:
    """A model ready to run; built by `hotset.model.build.build_transformer`.

    It is immutable: all that a sequence has of its own is in its `Sequence`.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        embedding: Embedding,
        layers: ListOf[Layer],
        head: Head,
        inputs: LayerInputs | None = None,
    ) -> None:
        self.config = config
        self.backend = backend
        self.embedding = embedding
        self.layers = tuple(layers)
        self.head = head
        self.inputs = inputs
        """Each layer's own embedding of the tokens, where there is one."""
        self._chain = self._chained()

    def _chained(self) -> Chain | None:
        """All layers' parts as one, where no layer does more than add what its parts give."""
        if self.config.parallel or any(
            layer.early or layer.own_input or layer.scale != 1 for layer in self.layers
        ):
            return None
        parts = [part for layer in self.layers for part in (layer.mixer, layer.ffn)]
        return self.backend.chain(
            [part for part in parts if not isinstance(part, Absent)], self.config.hidden_size
        )

    def sequence(self, capacity: int, kv_type: str = "f16") -> Sequence:
        """An empty sequence with room for `capacity` tokens; `kv_type` is ``f16``, ``q8_0`` or ``f32``."""
        return self.backend.sequence(self.state_shape, capacity, kv_type)

    @property
    def state_shape(self) -> StateShape:
        """What the layers keep of a sequence."""
        c = self.config
        cutoffs = tuple(layer.ffn.cutoff if layer.ffn else None for layer in c.layers)
        kept = tuple(layer.ffn.kept if layer.ffn else 0.0 for layer in c.layers)
        recurrent = tuple(layer.recurrent for layer in c.layers if layer.recurrent)
        n_layers, own = len(c.kv_layers), kv_shapes(c, c.kv_layers)
        return StateShape(n_layers, c.n_kv_heads, c.head_dim, cutoffs, kept, recurrent, own)

    def forward(self, batch: Batch) -> F32:
        """Append the batch's tokens to their sequences, and predict what follows.

        Returns the logits (R, V) of the rows for which the spans want them, in the batch's order, and writes
        the hidden vectors that they want. Nothing is appended if this raises: `RequestError` where a sequence
        has no room for its tokens, `NotFiniteError` where the model computes infinities or NaN.
        """
        _check(batch)
        lengths = [span.sequence.length for span in batch.spans]
        logits: list[F32] = []
        saved: list[tuple[Sequence, int]] = []  # what several pieces might have to go back to
        try:
            for piece in batch.pieces(SLICE, SINK_TOKENS):
                if not logits and piece is not batch:
                    saved = [(s.sequence, s.sequence.length) for s in batch.spans if s.sequence.save()]
                predicted = self._logits(piece)
                if not is_finite(predicted):
                    raise self.not_finite(piece)
                logits.append(predicted)
                for span in piece.spans:
                    span.sequence.advance(span.count)
        except BaseException:
            for span, length in zip(batch.spans, lengths, strict=True):
                span.sequence.rewind(length)
            raise
        finally:
            for sequence, length in saved:
                sequence.forget(length)
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _logits(self, batch: Batch) -> F32:
        """The logits that are wanted of a batch of at most `SLICE` rows; sequences do not advance."""
        x = self._hidden(batch)
        # A row spoils those that attend to it: what is not looked at here is found in later logits.
        if not batch.all_wanted and not is_finite(x):
            raise self.not_finite(batch)
        for span, rows in batch.rows():
            if span.hidden is not None:
                span.hidden[:] = self.head.normed(x[rows][-len(span.hidden) :])
        return self._head(x, batch)

    def not_finite(self, batch: Batch) -> HotsetError:
        """The error for a batch of at most `SLICE` rows that gives infinities or NaN: where they began."""
        return traced(self, batch)

    def _head(self, x: Array, batch: Batch) -> F32:
        """The logits that are wanted of the last hidden vectors (T, D)."""
        if batch.all_wanted:
            return self.head.forward(x)
        if not len(batch.wanted):
            return np.empty((0, self.config.vocab_size), np.float32)
        return self.head.forward(self.backend.rows(x, batch.wanted))

    def _hidden(self, batch: Batch) -> Array:
        """A batch of at most `SLICE` rows through all layers: hidden vectors (T, D)."""
        parallel = self.config.parallel
        view = self.backend.view(batch)
        x = self.embedding.forward(batch.tokens, batch.positions)
        if self._chain and len(batch.tokens) <= CHAINED:
            self._chain.forward(x, view)
            return x
        e = self.inputs.forward(batch.tokens, x) if self.inputs else None
        for i, layer in enumerate(self.layers):
            # Both parts read x and add to out. One after the other, out is x itself, so the FFN reads what
            # the attention has added; in parallel it is a copy, so the FFN reads what the attention read.
            out = self.backend.copy(x) if parallel else x
            layer.forward(x, out, view, None if e is None else e[:, i])
            x = out
        return x


def kv_shapes(config: ModelConfig, layers: ListOf[int]) -> tuple[KvShape, ...]:
    """`StateShape.own` of those layers."""
    if config.latent is None and all(layer.heads is None for layer in config.layers):
        return ()
    return tuple(map(config.kv_shape, layers))


def _check(batch: Batch) -> None:
    for span in batch.spans:
        length, capacity = span.sequence.length, span.sequence.capacity
        if not 0 < span.count <= capacity - length:
            raise RequestError(
                f"{span.count} tokens to append to {length}: expected 1 to {capacity - length}, as the "
                f"context has {capacity}; shorten the prompt or ask for a larger context"
            )
        if not 0 <= span.logits <= span.count:
            raise ValueError(f"logits of {span.logits} rows are wanted of a span of {span.count}")
    if sum(span.count for span in batch.spans) != len(batch.tokens):
        raise ValueError("a batch's spans must have as many rows as it has tokens")
    if len({id(span.sequence) for span in batch.spans}) != len(batch.spans):
        raise ValueError("a sequence has one span of a batch at most")
