"""The decoder with its parts in two places.

The same walk as `hotset.model.transformer`, which also says what an FFN in parallel to attention reads.
Single tokens go by `Step`, where the host's worker and the device's stream are both told beforehand; several
tokens, and single ones for which a plan must not choose neurons, go layer by layer, and the calling thread
does the host's part.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from threading import Lock

import numpy as np

from hotset.backends.contract import F32, Array, Embedding, Head, StateShape
from hotset.backends.cpu import CpuBackend, CpuNeuronFFN
from hotset.core.batch import Batch, Span
from hotset.core.config import ModelConfig
from hotset.hybrid.device import Device, DeviceMemoryError, to_device
from hotset.hybrid.layer import AddCold, HybridLayer
from hotset.hybrid.sequence import HybridSequence
from hotset.hybrid.step import Step
from hotset.hybrid.streaming import ColdStream, Walk
from hotset.model.transformer import Transformer


class HybridTransformer(Transformer):
    """A model on a device and the CPU; built by `hotset.hybrid.build.build_hybrid`.

    With a `stream`, prompts of at least `stream_from` tokens have their cold neurons computed on the device
    too.
    """

    def __init__(
        self,
        config: ModelConfig,
        host: CpuBackend,
        device: Device,
        embedding: Embedding,
        layers: Sequence[HybridLayer],
        head: Head,
        *,
        head_on_device: bool,
        stream: ColdStream | None = None,
        stream_from: int = 0,
    ) -> None:
        super().__init__(config, host, embedding, layers, head)
        self.device = device
        self._host = host
        self._parts = tuple(layers)
        self._approximate = any(
            part.host_ffn and layer.ffn and layer.ffn.way.approximate
            for part, layer in zip(layers, config.layers, strict=True)
        )
        self._head_on_device = head_on_device
        self._stream = stream
        self._stream_from = stream_from
        self._lock = Lock()
        self._step = Step(
            layers,
            device,
            hidden=config.hidden_size,
            parallel=config.parallel,
            head=head if head_on_device else None,
            vocab_size=config.vocab_size,
        )
        self.head = _Head(head, self._step)

    def sequence(self, capacity: int, kv_type: str = "f16") -> HybridSequence:
        """See `Transformer`; each layer's keys and values lie where its attention is computed."""
        shape = self.state_shape
        on_device = sum(layer.attention_on_device for layer in self._parts)

        def half(n_layers: int, cutoffs: tuple[float | None, ...]) -> StateShape:
            return StateShape(n_layers, shape.n_kv_heads, shape.head_dim, cutoffs)

        device = None
        if on_device:
            with self.device.guard():
                device = self.device.backend.sequence(half(on_device, ()), capacity, kv_type)
        # The host's half is there in any case, for the choosers.
        host = self._host.sequence(half(max(shape.n_layers - on_device, 1), shape.cutoffs), capacity, kv_type)
        return HybridSequence(device, host, capacity)

    def forward(self, batch: Batch) -> F32:
        """See `Transformer`. One call at a time, others wait: buffers are the model's, not the sequence's."""
        with self._lock:
            logits = [super(HybridTransformer, self).forward(one) for one in _one_by_one(batch)]
            return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def close(self) -> None:
        """End the worker's thread; it starts again with the next token."""
        self._step.close()

    def _hidden(self, batch: Batch) -> Array:
        (span,) = batch.spans
        sequence = span.sequence
        if not isinstance(sequence, HybridSequence):
            raise TypeError("a hybrid model needs its own sequences")
        sequence.settle()
        x = self.embedding.forward(batch.tokens, batch.positions)
        # A step is always the same, with neurons chosen by each layer's plan.
        if span.count == 1 and not (span.lossless and self._approximate):
            with ExitStack() as lent:
                for part, chooser in zip(self._parts, sequence.on_host.choosers, strict=True):
                    if chooser and isinstance(part.host_ffn, CpuNeuronFFN):
                        lent.enter_context(chooser.lent_to(part.host_ffn.native))
                return self._step.run(x, sequence)
        return self._layer_by_layer(x, sequence, span)

    def _layer_by_layer(self, x: Array, sequence: HybridSequence, span: Span) -> Array:
        tokens = np.zeros(span.count, np.int32)
        host_view = self._host.view(Batch(tokens, (Span(sequence.on_host, span.count, span.lossless),)))
        device_view = None
        if sequence.on_device:
            on_device = Span(sequence.on_device, span.count, span.lossless)
            device_view = self.device.backend.view(Batch(tokens, (on_device,)))
        here = False  # whether x is on the device
        with self._walk(len(x)) as begun:
            walk = begun
            for layer in self._parts:
                x, here = self._bring(x, here, layer.attention_on_device), layer.attention_on_device
                backend = self.device.backend if here else self._host
                out = backend.copy(x) if self.config.parallel else x
                layer.attention.forward(x, out, device_view if here else host_view)
                if walk and layer.add_cold:
                    x, out = self._bring_both(x, out, here, True)
                    here = True
                    if self._stream_ffn(layer.add_cold, x, out, walk):
                        x = out
                        continue
                    walk = None
                x, out = self._bring_both(x, out, here, layer.ffn_on_device)
                here = layer.ffn_on_device
                # Of an FFN on the device, the host's part chooses.
                layer.ffn.forward(x, out, host_view if not here or layer.host_ffn else None)
                x = out
        return self._bring(x, here, self._head_on_device)

    def _walk(self, tokens: int) -> AbstractContextManager[Walk | None]:
        """Cold weights on their way to the device, for prompts that repay it."""
        return self._stream.walk() if self._stream and tokens >= self._stream_from else nullcontext()

    def _stream_ffn(self, add_cold: AddCold, x: Array, out: Array, walk: Walk) -> bool:
        """Add the next layer's FFN of x to out; False, and nothing is added, where it has no room."""
        total = self.device.empty(tuple(x.shape))
        self.device.zero(total)
        try:
            walk.add(x, total)  # before the hot neurons, which may add to x itself
        except DeviceMemoryError:  # others have taken it since the model was placed
            return False
        add_cold(x, out, total)
        return True

    def _bring_both(self, x: Array, out: Array, here: bool, there: bool) -> tuple[Array, Array]:
        brought = self._bring(out, here, there)
        return (brought if x is out else self._bring(x, here, there)), brought

    def _bring(self, x: Array, here: bool, there: bool) -> Array:
        """x (T, D) on the other side, where it is not there already."""
        if here == there:
            return x
        if there:
            return to_device(self.device, x)
        on_host = self.device.pinned(tuple(x.shape), np.float32)
        self.device.download(x, on_host)
        self.device.synchronize()
        return on_host


class _Head:
    """The head; of a step's hidden vector the device has computed and sent the logits already."""

    def __init__(self, head: Head, step: Step) -> None:
        self._head, self._step = head, step

    def forward(self, x: Array) -> F32:
        """See `Head`."""
        logits = self._step.logits
        return self._head.forward(x) if logits is None or x is not self._step.last else logits.copy()


def _one_by_one(batch: Batch) -> list[Batch]:
    return [Batch(batch.tokens[rows], (span,)) for span, rows in batch.rows()]
