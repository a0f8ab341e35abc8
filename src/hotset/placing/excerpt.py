"""An excerpt of a model: a few of its layers, or parts of them, as a model of their own that is timed."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hotset.core.batch import Batch
from hotset.core.config import LayerConfig, Placement
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor
from hotset.hybrid.transformer import HybridTransformer

F64 = NDArray[np.float64]

ROOM = 192
"""Positions that an excerpt has for its steps."""
_PROMPT = 128
"""Tokens that between them use nearly all experts."""
_BEFORE = 64
"""Tokens read before, where nothing else is said."""
_SEARCH, _WIDEST = 16, 14.0
"""Halvings to find a cut-off, and the arcsine hyperbolic of the largest."""

FEW_TOKENS = 64
"""A vocabulary that makes a head's time nothing."""


@dataclass(frozen=True)
class Piece:
    """A layer of the model, or one of its two parts."""

    layer: int
    mixer: bool = True
    ffn: bool = True


def excerpt(checkpoint: Checkpoint, pieces: Sequence[Piece], *, whole_head: bool = False) -> Checkpoint:
    """These pieces as a model: cut-offs stay where they are put; without `whole_head` the head is small."""
    config = checkpoint.config
    vocab = config.vocab_size if whole_head else min(FEW_TOKENS, config.vocab_size)
    tensors = {
        name: tensor.rows(0, vocab) if name.startswith(("token_embd.", "output.")) else tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("blk.")
    }
    of_layer: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in checkpoint.tensors.items():
        if match := re.match(r"blk\.(\d+)\.(.+)", name):
            of_layer.setdefault(int(match[1]), []).append((match[2], tensor))
    for number, piece in enumerate(pieces):
        tensors |= {f"blk.{number}.{name}": tensor for name, tensor in of_layer[piece.layer]}
    layers = tuple(_layer(config.layers[piece.layer], piece) for piece in pieces)
    return replace(checkpoint, config=replace(config, layers=layers, vocab_size=vocab), tensors=tensors)


def _layer(layer: LayerConfig, piece: Piece) -> LayerConfig:
    if not piece.mixer:
        experts = layer.experts and replace(layer.experts, early=False)
        layer = replace(layer, attention=False, recurrent=None, experts=experts)
    if not piece.ffn:
        layer = replace(layer, feeds=False, ffn=None, experts=None)
    return replace(layer, ffn=layer.ffn and replace(layer.ffn, kept=0.0))


@dataclass(frozen=True)
class StepTime:
    """A step of an excerpt."""

    us: float
    """The median of some."""
    chosen: F64
    """(L,): neurons or experts of each layer that the host chose to compute, the mean."""


class Excerpt:
    """An excerpt as it runs, token by token, each of them at random."""

    def __init__(
        self, checkpoint: Checkpoint, placement: Placement, model: HybridTransformer, kv_type: str
    ) -> None:
        self.checkpoint, self.placement = checkpoint, placement
        self._model, self._kv_type = model, kv_type
        self._rng = np.random.default_rng(0)
        self._hot = np.array([layer.hot for layer in placement.layers], np.int64)
        self._size = np.array([checkpoint.config.units(i) for i in range(len(self._hot))], np.int64)
        self._cutoffs: F64 | None = None
        self.fill(_BEFORE)

    def fill(self, count: int) -> None:
        """Have so many tokens read before: zeros, in memory of their own as others are."""
        room = min(count + ROOM, self.checkpoint.config.context_length)
        empty = self._model.sequence(room, self._kv_type)
        empty.advance(max(1, min(count, room - ROOM)))
        self._filled = empty.fork()
        self._sequence = self._filled.fork()

    def prompt(self) -> None:
        """Read some tokens together: this packs experts."""
        sequence = self._filled.fork()
        count = min(_PROMPT, sequence.capacity - sequence.length)
        self._model.forward(Batch.of(sequence, self._tokens(count), logits=0))

    def choose(self, share: float) -> None:
        """Move the cut-offs until such a share of each layer's cold neurons is computed."""
        self._cutoffs = np.full(len(self._hot), np.inf if share == 0 else -np.inf)
        if share in (0, 1):
            return
        low, high = np.full(len(self._hot), -_WIDEST), np.full(len(self._hot), _WIDEST)
        wanted = share * (self._size - self._hot)
        for _ in range(_SEARCH):
            middle = (low + high) / 2
            self._cutoffs = np.sinh(middle)
            _, chosen = self._step(self._cutoffs)
            low, high = np.where(chosen > wanted, middle, low), np.where(chosen > wanted, high, middle)

    def timed(self, steps: int) -> StepTime:
        """Time so many steps, after two others.

        Where neurons are chosen, a step that computes all of them comes before each.
        """
        chooses = self._cutoffs is not None and not np.isneginf(self._cutoffs).all()
        everything = np.full(len(self._hot), -np.inf)
        seconds, counts = [], []
        for i in range(-2, steps):
            if chooses:
                self._step(everything)
            took, chosen = self._step(self._cutoffs)
            if i >= 0:
                seconds.append(took)
                counts.append(chosen)
        return StepTime(median(seconds) * 1e6, np.mean(counts, axis=0))

    def frequency(self, chosen: F64) -> list[F64]:
        """How often each layer's units are computed, so that as many cold ones are as the steps chose."""
        found = []
        for size, hot, n, layer in zip(
            self._size, self._hot, chosen, self.checkpoint.config.layers, strict=True
        ):
            used = layer.experts.used if layer.experts else size
            each = np.full(size, used / max(size, 1))
            if hot < size and not (layer.experts and hot == 0):
                each[:hot], each[hot:] = (used - n) / max(hot, 1), n / (size - hot)
            found.append(each)
        return found

    def _step(self, cutoffs: F64 | None) -> tuple[float, F64]:
        """Seconds of a step with these cut-offs, and what the host chose in it, (L,)."""
        if self._sequence.length == self._sequence.capacity:
            self._sequence = self._filled.fork()
        choosers = self._sequence.choosers
        if cutoffs is not None:
            for chooser, cutoff in zip(choosers, cutoffs, strict=True):
                if chooser:
                    chooser.cutoff = float(cutoff)
        before = [chooser.work.chosen if chooser else 0 for chooser in choosers]
        batch = Batch.of(self._sequence, self._tokens(1))
        start = time.perf_counter()
        self._model.forward(batch)
        took = time.perf_counter() - start
        return took, self._chosen(before)

    def _chosen(self, before: Sequence[int]) -> F64:
        """What the host chose in the last step, (L,)."""
        chosen = np.zeros(len(self._hot))
        selections = iter(self._model.selections(1))
        for i, (layer, chooser) in enumerate(
            zip(self.checkpoint.config.layers, self._sequence.choosers, strict=True)
        ):
            if chooser:
                chosen[i] = chooser.work.chosen - before[i]
            elif layer.experts and self._hot[i] == 0:
                chosen[i] = layer.experts.used
            elif layer.experts and self._hot[i] < self._size[i]:
                chosen[i] = np.count_nonzero(next(selections)[0] > 0)
        return chosen

    def _tokens(self, count: int) -> NDArray[np.int32]:
        return self._rng.integers(0, self.checkpoint.config.vocab_size, count).astype(np.int32)
