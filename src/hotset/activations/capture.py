"""Runs a model over token ids while every FFN is watched: what profiles and predictors are made from.

The engine has no hooks for this. A second `Transformer` is put together from the same parts, in which each
FFN first shows its neurons' values to an observer and then does its work.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32, FFN, Array, BatchView, CountsFired, Experts
from hotset.core.batch import Batch
from hotset.core.errors import HotsetError
from hotset.model.transformer import SLICE, Layer, Transformer

Observe = Callable[[int, F32, F32, F32], None]
"""Told (layer, x, gate, h) for T tokens: the FFN's input before its norm (T, D), the activation's input
(T, F) and the neurons' values (T, F), as `hotset.backends.contract.FFN.neurons` defines them. All three
live only during the call: keep copies. ``gate`` and ``h`` may be overwritten, ``x`` not.

Of a mixture, h has the weights (T, E) of the experts that each token selects, and gate how many of their
neurons are not zero, where `count_fired` asks for that, or h's numbers; layers that are no mixtures are then
not shown."""


def windows_of(ids: Sequence[int], length: int, bos: int | None = None) -> list[NDArray[np.int32]]:
    """Cut a text into windows of `length` tokens, each to be read from an empty context.

    What does not fill the last one is left out. As in `hotset.measure.perplexity`, a window's first token is
    replaced by `bos`, for models whose texts begin with one.
    """
    windows = [
        np.array(ids[start : start + length], np.int32) for start in range(0, len(ids) - length + 1, length)
    ]
    if bos is not None:
        for window in windows:
            window[0] = bos
    return windows


def capture(
    transformer: Transformer,
    windows: Sequence[NDArray[np.int32]],
    observe: Observe,
    *,
    skip: int = 0,
    count_fired: bool = False,
    done: Callable[[int], None] | None = None,
) -> None:
    """Read windows of tokens (T,), each from an empty context, and show `observe` every FFN's neurons.

    `observe` is called for one layer after the other, a slice of at most `SLICE` tokens at a time. A window's
    first `skip` tokens are not shown: many models park huge values there (attention sinks,
    arXiv 2309.17453). `count_fired` computes experts' neurons for the count. `done(count)` is told after each
    window. Raises `RequestError` for an empty window, `HotsetError` for FFNs of different widths.
    """
    if not windows:
        return
    config = transformer.config
    widths = {config.neurons(i) for i, layer in enumerate(config.layers) if layer.feeds and not layer.experts}
    if not config.mixture and len(widths) > 1:
        raise HotsetError(
            f"FFNs of {min(widths)} to {max(widths)} neurons in one model cannot be profiled yet: expected "
            "layers of one width"
        )
    shape = (SLICE, config.profiled_units)
    gate_buffer, h_buffer = np.empty(shape, np.float32), np.empty(shape, np.float32)
    sequence = transformer.sequence(max(map(len, windows)))

    def watch(layer: int, ffn: FFN, x: F32, weights: F32 | None) -> None:
        first = min(len(x), max(0, skip - sequence.length))
        if first >= len(x) or (config.mixture and weights is None):
            return
        gate, h = gate_buffer[: len(x)], h_buffer[: len(x)]
        if weights is None:
            ffn.neurons(x, gate, h)
        else:
            counted = count_fired and isinstance(ffn, CountsFired)
            gate[:] = cast(CountsFired, ffn).fired(x, weights) if counted else weights
            h[:] = weights
        observe(layer, x[first:], gate[first:], h[first:])

    def watched(number: int, layer: Layer) -> Layer:
        if not config.layers[number].experts:
            return replace(layer, ffn=_WatchedFFN(number, layer.ffn, watch))
        experts = _WatchedExperts(number, cast(Experts, layer.ffn), watch)
        return replace(layer, ffn=experts, early=experts if layer.early else None)

    watching = Transformer(
        config,
        transformer.backend,
        transformer.embedding,
        [watched(i, layer) for i, layer in enumerate(transformer.layers)],
        transformer.head,
        transformer.inputs,
    )
    for count, window in enumerate(windows, 1):
        sequence.rewind(0)
        watching.forward(Batch.of(sequence, window, lossless=True, logits=0))
        if done:
            done(count)


class _WatchedFFN:
    """An FFN that is shown, with its input, to `watch` before it adds to the hidden vectors."""

    def __init__(self, layer: int, ffn: FFN, watch: "_Watch") -> None:
        self._layer, self._ffn, self._watch = layer, ffn, watch

    def forward(self, x: F32, out: F32, view: BatchView) -> None:
        self._watch(self._layer, self._ffn, x, None)
        self._ffn.forward(x, out, view)

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        self._ffn.neurons(x, gate, h)


class _WatchedExperts:
    """The same of a mixture, whose selection is shown."""

    def __init__(self, layer: int, experts: Experts, watch: "_Watch") -> None:
        self._layer, self._experts, self._watch = layer, experts, watch
        self.route, self.select, self.add = experts.route, experts.select, experts.add
        self.neurons = experts.neurons

    def forward(self, x: F32, out: F32, view: BatchView, logits: Array | None = None) -> None:
        weights = self._experts.select(x, logits)
        self._watch(self._layer, self._experts, x, weights)
        self._experts.add(x, out, weights)


_Watch: TypeAlias = Callable[[int, FFN, F32, F32 | None], None]
"""Told (layer, FFN, x, weights): the FFN's input and, of a mixture, the weights of its experts."""
