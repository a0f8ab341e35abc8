"""The decoder with its parts in two places.

The same walk as `hotset.model.transformer`, which also says what an FFN in parallel to attention reads. Small
batches go by a step that both sides know beforehand (`hotset.hybrid.step`); larger ones go layer by layer,
and the calling thread does the host's part.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np

from hotset.backends.contract import F32, Array, Embedding, Head, LayerInputs, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import ModelConfig
from hotset.core.errors import HotsetError
from hotset.hybrid.device import Device, DeviceMemoryError, to_device, zeros
from hotset.hybrid.executor import Executor
from hotset.hybrid.experts import add_split_experts
from hotset.hybrid.ffn import Views, add_split
from hotset.hybrid.parts import (
    AnyFFN,
    AnyLayerInput,
    AnyMixer,
    EarlyRouter,
    HybridLayer,
    OnDevice,
    OnHost,
    Split,
    SplitExperts,
    Streamed,
)
from hotset.hybrid.plan_step import plan_step
from hotset.hybrid.sequence import HybridSequence, halves
from hotset.hybrid.step import MOST_ROWS
from hotset.hybrid.streaming import ColdStream, Walk
from hotset.hybrid.swaps import Swaps
from hotset.model.finite import not_finite
from hotset.model.transformer import Transformer, kv_shapes


@dataclass(frozen=True)
class _Hidden:
    """Hidden vectors (T, D) on one side: what the next part reads, and what it adds to, maybe the same."""

    x: Array
    out: Array
    on_device: bool


class HybridTransformer(Transformer):
    """A model on a device and the CPU; built by `hotset.hybrid.build.build_hybrid`.

    With a `stream`, batches of at least `stream_from` tokens have their cold neurons computed on the device
    too. Any thread may call it; one call at a time, others wait.
    """

    def __init__(
        self,
        config: ModelConfig,
        host: CpuBackend,
        device: Device,
        embedding: Embedding,
        layers: Sequence[HybridLayer],
        head: OnHost[Head] | OnDevice[Head],
        inputs: LayerInputs | None = None,
        *,
        stream: ColdStream | None = None,
        stream_from: int = 0,
        swap_rate: float = 0.0,
    ) -> None:
        super().__init__(config, host, embedding, (), head.part, inputs)
        self.device = device
        self.parts = tuple(layers)
        """The layers; a `Transformer`'s own are all in one place."""
        self.step = plan_step(
            layers,
            head,
            hidden=config.hidden_size,
            vocab_size=config.vocab_size,
            parallel=config.parallel,
            layer_input=config.layer_input,
        )
        self._host = host
        self._head_place = head
        self._stream, self._stream_from = stream, stream_from
        self._lock = Lock()
        mixtures = [layer.ffn for layer in self.parts if isinstance(layer.ffn, SplitExperts)]
        self.swaps: Swaps | None = None
        if mixtures and swap_rate:
            parts = [mixture.resident for mixture in mixtures]
            largest = max(mixture.expert_bytes for mixture in mixtures)
            self.swaps = Swaps(parts, mixtures[0].count, largest, swap_rate, device)
        self._head_backend = device.backend if isinstance(head, OnDevice) else host
        with device.guard():
            self._executor = Executor(self.step, device)

    def sequence(self, capacity: int, kv_type: str = "f16") -> HybridSequence:
        """Each layer's keys and values lie where its attention is computed."""
        on_device, on_host = (self._half(place) for place in (OnDevice, OnHost))
        with self.device.guard():
            half = self.device.backend.sequence(on_device, capacity, kv_type)
        return HybridSequence(self.device, half, self._host.sequence(on_host, capacity, kv_type))

    def _half(self, place: type[Any]) -> StateShape:
        """What the layers keep whose mixer is in one of both places."""
        here = [i for i, parts in enumerate(self.parts) if isinstance(parts.mixer, place)]
        states = tuple(state for state in (self.config.layers[i].recurrent for i in here) if state)
        kept = [i for i in here if i in self.config.kv_layers]
        own = kv_shapes(self.config, kept)
        return replace(self.state_shape, n_layers=len(kept), recurrent=states, own=own)

    def forward(self, batch: Batch) -> F32:
        with self._lock, self.device.guard():
            return super().forward(batch)

    def not_finite(self, batch: Batch) -> HotsetError:
        """The device's parts are not looked into."""
        return not_finite(batch)

    def selections(self, rows: int) -> F32:
        """(M, rows, E): what the last step's M split mixtures selected; see `Executor.selections`."""
        return self._executor.selections(rows)

    def close(self) -> None:
        """End the worker's thread, which starts again with the next small batch, and the swaps."""
        self._executor.close()
        if self.swaps:
            self.swaps.close()
            self.swaps = None

    def _logits(self, batch: Batch) -> F32:
        on_device, on_host = halves(batch)
        x = self.embedding.forward(batch.tokens, batch.positions)
        e = self.inputs.forward(batch.tokens, x) if self.inputs else None
        if len(x) > MOST_ROWS:
            choosing = not all(span.lossless for span in batch.spans)
            views = Views(self.device.backend.view(on_device), self._host.view(on_host), choosing)
            last = self._layer_by_layer(x, e, views)
        else:
            last, logits = self._executor.run(x, e, on_device, self._host.view(on_host))
            if self.swaps:
                self.swaps.after_step(self.selections(len(x)))
            if logits is not None:
                wanted: F32 = logits[batch.wanted]
                return wanted
        return self._head(last, batch)

    def _head(self, x: Array, batch: Batch) -> F32:
        rows = batch.wanted
        if not len(rows):
            return np.empty((0, self.config.vocab_size), np.float32)
        return self.head.forward(x if len(rows) == len(x) else self._head_backend.rows(x, rows))

    def _layer_by_layer(self, x: F32, e: F32 | None, views: Views) -> Array:
        """The last hidden vectors, where the head is, of embeddings x (T, D) and the layers' e (T, L, P)."""
        hidden = _Hidden(x, x, on_device=False)
        with self._walk(len(x)) as begun:
            walk = begun
            for i, layer in enumerate(self.parts):
                weights = self._select(layer.early, hidden) if layer.early else None
                if layer.mixer:
                    hidden = self._attend(layer.mixer, hidden, views)
                fed = False
                if walk and layer.streamed:
                    try:
                        hidden, fed = self._stream_ffn(layer.streamed, hidden, views, walk), True
                    except DeviceMemoryError:  # others have taken it since the model was placed
                        walk = None
                if layer.early:
                    hidden = self._feed_selected(layer.early, hidden, weights)
                elif layer.ffn and not fed:
                    hidden = self._feed(layer.ffn, hidden, views)
                if layer.own_input and e is not None:
                    hidden = self._add_input(layer.own_input, hidden, np.ascontiguousarray(e[:, i]))
                if layer.scale != 1:
                    self._scale(hidden, layer.scale)
        return self._bring(hidden, on_device=isinstance(self._head_place, OnDevice)).out

    def _attend(self, attention: AnyMixer, hidden: _Hidden, views: Views) -> _Hidden:
        """Add a layer's attention: to its own input or, where the FFN reads that too, to a copy."""
        on_device = isinstance(attention, OnDevice)
        at = self._bring(hidden, on_device=on_device)
        backend = self.device.backend if on_device else self._host
        if self.config.parallel:
            at = replace(at, out=backend.copy(at.x))
        attention.part.forward(at.x, at.out, views.on_device if on_device else views.on_host)
        return at

    def _feed(self, ffn: AnyFFN, hidden: _Hidden, views: Views) -> _Hidden:
        """Add a layer's FFN."""
        match ffn:
            case OnHost(part):
                at = self._bring(hidden, on_device=False)
                part.forward(at.x, at.out, views.on_host)
            case OnDevice(part):
                at = self._bring(hidden, on_device=True)
                part.forward(at.x, at.out, views.on_device)
            case Split():
                at = self._bring(hidden, on_device=True)
                add_split(ffn, self.device, at.x, at.out, views)
            case SplitExperts():
                at = self._bring(hidden, on_device=True)
                add_split_experts(ffn, self.device, at.x, at.out, ffn.resident.select(at.x))
        return replace(at, x=at.out)

    def _select(self, early: EarlyRouter, hidden: _Hidden) -> Array:
        """The weights that an early router gives experts, of what the mixer reads."""
        match early.experts:
            case OnHost(experts):
                return experts.select(self._bring(hidden, on_device=False).x)
            case OnDevice(part) | SplitExperts(resident=part):
                return part.select(self._bring(hidden, on_device=True).x)

    def _feed_selected(self, early: EarlyRouter, hidden: _Hidden, weights: Array) -> _Hidden:
        """Add a layer's mixture, by the weights that its router has given before."""
        at = self._bring(hidden, on_device=not isinstance(early.experts, OnHost))
        match early.experts:
            case OnHost(experts):
                experts.add(at.x, at.out, weights)
            case OnDevice(part):
                part.add(at.x, at.out, weights)
            case SplitExperts() as split:
                add_split_experts(split, self.device, at.x, at.out, weights)
        return replace(at, x=at.out)

    def _add_input(self, own: AnyLayerInput, hidden: _Hidden, e: F32) -> _Hidden:
        """Add what a layer's own embedding e (T, P) of the tokens gives."""
        on_device = isinstance(own, OnDevice)
        at = self._bring(hidden, on_device=on_device)
        own.part.forward(at.x, self._to_device(e) if on_device else e, at.out)
        return at

    def _scale(self, hidden: _Hidden, factor: float) -> None:
        if hidden.on_device:
            self.device.scale(hidden.out, factor)
        else:
            x: F32 = hidden.out
            x *= np.float32(factor)

    def _walk(self, tokens: int) -> AbstractContextManager[Walk | None]:
        """Cold weights on their way to the device, for batches that repay it."""
        return self._stream.walk() if self._stream and tokens >= self._stream_from else nullcontext()

    def _stream_ffn(self, ffn: Streamed, hidden: _Hidden, views: Views, walk: Walk) -> _Hidden:
        """Add the next layer's FFN; nothing is added where `DeviceMemoryError` is raised."""
        at = self._bring(hidden, on_device=True)
        total = zeros(self.device, at.x.shape)
        walk.add(at.x, total, views.on_device)
        if ffn.hot:
            ffn.hot.forward(at.x, total, views.on_device)
        ffn.add(total, at.out)
        return replace(at, x=at.out)

    def _bring(self, hidden: _Hidden, *, on_device: bool) -> _Hidden:
        """Hidden vectors on one side, brought where they are not there already."""
        if hidden.on_device == on_device:
            return hidden
        bring = self._to_device if on_device else self._to_host
        out = bring(hidden.out)
        return _Hidden(out if hidden.x is hidden.out else bring(hidden.x), out, on_device)

    def _to_device(self, x: F32) -> Array:
        return to_device(self.device, x)

    def _to_host(self, x: Array) -> F32:
        here: F32 = self.device.pinned(tuple(x.shape), np.float32)
        self.device.download(x, here)
        self.device.synchronize()
        return here
