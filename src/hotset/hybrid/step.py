"""One token through all layers: the device's stream on one side, the host's worker on the other.

Both sides know the step beforehand. The host's parts are tasks of a native worker, each with its two flags
and its pinned memory; the device is told the same at every token, so that it can record it and replay it.
Parts that follow one another on the host are one task, and x changes sides only between tasks.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hotset import _native
from hotset.backends.contract import F32, Array, Head
from hotset.backends.cpu import CpuFFN
from hotset.core.batch import Batch, Span
from hotset.core.batch import Sequence as State
from hotset.core.errors import HotsetError
from hotset.hybrid.device import Device, Flag
from hotset.hybrid.ffn import HybridFFN
from hotset.hybrid.layer import HostFFN, HybridLayer
from hotset.hybrid.sequence import HybridSequence

Action = Callable[[State | None], None]
"""Something to tell the device, given its half of the sequence."""

_ONE = np.zeros(1, np.int32)

_LINE = 16
"""Numbers of four bytes to a cache line."""


class Step:
    """The layers as a step of one token; one at a time."""

    def __init__(
        self,
        layers: Sequence[HybridLayer],
        device: Device,
        *,
        hidden: int,
        parallel: bool,
        head: Head | None,
        vocab_size: int,
    ) -> None:
        self._device = device
        self._worker = _native.ColdWorker()
        self._actions: list[Action] = []
        self._keep: list[object] = []  # what the worker has only addresses of
        self._tasks = 0
        self._chain: Flag | None = (
            None  # raised when the last task, which goes on with x on the host, is done
        )
        self._unfinished = False

        def vector(size: int = hidden) -> F32:
            return self._held(device.pinned((1, size), np.float32))

        # The residual on either side, what each kind of part adds to it, and room for a sum.
        self._host_x = vector()
        self._host_sums = (vector(), vector())
        self._host_scratch = self._held(np.empty((1, hidden), np.float32))
        self._scores = vector(max((f.n_cold for f in map(_split, layers) if f and f.predictor), default=1))
        self._x, self._out, self._total = (device.empty((1, hidden)) for _ in range(3))

        self._on_device = False
        for layer in layers:
            if parallel:
                self._add_parallel(layer)
            else:
                self._add_attention(layer)
                self._add_ffn(layer)
        self.logits: F32 | None = None
        """What the head makes of the last hidden vector, where it is on the device."""
        self._bring(head is not None)
        if self._chain is not None:
            done = self._chain
            self._say(lambda: device.take_flag(done))
        if head is not None:
            logits, at = self._held(device.pinned((1, vocab_size), np.float32)), self._x
            self.logits = logits
            self._say(lambda: device.download(device.logits(head, at), logits))
        self.last = self._host_x if head is None else self._x
        """The last hidden vector, on the host or on the device, where the head is."""

    def run(self, x: F32, kv: HybridSequence) -> Array:
        """The last hidden vector, and the logits, of the embedding x (1, D).

        Both are overwritten by the next step. Raises `HotsetError` where the host's part failed; whatever
        raises, the next step works.
        """
        if self._unfinished:
            self._recover()
        self._unfinished = True
        np.copyto(self._host_x, x)
        if kv.recorded is None:
            kv.recorded = self._device.record(partial(self._tell, kv.on_device))
        try:
            if self._tasks:
                self._worker.begin(kv.on_host.kv)
            kv.recorded()
            self._device.mark(spin=not self._tasks).wait()
            error = self._worker.finish()
        except BaseException:
            self._recover()
            raise
        if error:
            self._recover()
            raise HotsetError(f"the CPU's part of the model failed: {error}; ask again")
        self._unfinished = False
        return self.last

    def close(self) -> None:
        """End the worker's thread; a step in hand fails, the next one starts another."""
        self._worker.stop()

    def _tell(self, kv: State | None) -> None:
        for action in self._actions:
            action(kv)

    def _recover(self) -> None:
        """Bring both sides to rest. With all `done` flags raised, nothing keeps the stream from its end."""
        self._worker.abort()
        self._device.synchronize()
        self._worker.lower_flags()
        self._unfinished = False

    # What follows is called while the step is put together.

    def _held(self, array: F32) -> F32:
        self._keep.append(array)
        return array

    def _task(self) -> tuple[Flag, Flag]:
        """A new task of the worker: its flags."""
        flags = self._device.pinned((2, _LINE), np.uint32)
        self._keep.append(flags)
        self._worker.task(flags[0], flags[1])
        self._tasks += 1
        return flags[0], flags[1]

    def _say(self, tell: Callable[[], None]) -> None:
        self._actions.append(lambda kv: tell())

    def _bring(self, on_device: bool) -> None:
        """Bring x to one side."""
        device, here, there, done = self._device, self._host_x, self._x, self._chain
        if on_device and not self._on_device:
            if done is None:
                self._say(lambda: device.upload(here, there))
            else:
                self._say(lambda: device.receive(done, here, there, add=False))
            self._chain = None
        elif self._on_device and not on_device:
            self._say(lambda: device.download(there, here))
        self._on_device = on_device

    def _continue_chain(self) -> None:
        """Have x on the host and a task that works on it there: the last one, where nothing came between."""
        if self._chain is not None:
            return
        ready, self._chain = self._task()
        x = self._x
        self._tell_sent([lambda: (x, self._host_x)] if self._on_device else [], ready)
        self._on_device = False

    def _tell_sent(self, parts: Sequence[Callable[[], tuple[Array, F32]]], ready: Flag) -> None:
        """Send vectors to the host, each with where it goes there, and raise the flag behind the last."""
        device = self._device

        def tell() -> None:
            for part in parts:
                device.download(*part())
            device.raise_flag(ready)

        self._say(tell)

    def _add_attention(self, layer: HybridLayer) -> None:
        if layer.host_attention:
            self._continue_chain()
            self._worker.attention(layer.host_attention.native, self._host_x, self._host_x, layer.index)
        else:
            self._bring(True)
            self._tell_attention(layer, self._x, self._x)

    def _add_ffn(self, layer: HybridLayer) -> None:
        if not layer.ffn_on_device and layer.host_ffn:
            self._continue_chain()
            self._host_ffn(layer.host_ffn, self._host_x, self._host_x, None)
            return
        at_host = not self._on_device
        self._bring(True)
        add = self._start_ffn(layer, send=not at_host)
        add(self._x, self._x)

    def _add_parallel(self, layer: HybridLayer) -> None:
        """Both parts read x: the host's are started first, and all add to a copy."""
        x, out, device = self._x, self._out, self._device
        attention, ffn = layer.host_attention, layer.host_ffn
        if attention and ffn and not layer.ffn_on_device:
            self._continue_chain()
            self._worker.copy(self._host_x, self._host_scratch)
            self._worker.attention(attention.native, self._host_x, self._host_scratch, layer.index)
            self._host_ffn(ffn, self._host_x, self._host_scratch, None)
            self._worker.copy(self._host_scratch, self._host_x)
            return
        at_host = not self._on_device
        self._bring(True)
        if (attention or ffn) and not at_host:
            self._say(lambda: device.download(x, self._host_x))
        done = None
        if attention:
            ready, done = self._task()
            self._worker.zero(self._host_sums[0])
            self._worker.attention(attention.native, self._host_x, self._host_sums[0], layer.index)
            self._say(lambda: device.raise_flag(ready))
        add_ffn = self._start_ffn(layer, send=False)
        self._say(lambda: device.assign(x, out))
        if done is None:
            self._tell_attention(layer, x, out)
        add_ffn(x, out)
        if done is not None:
            self._tell_arrival(done, self._host_sums[0], out)
        self._x, self._out = out, x

    def _tell_attention(self, layer: HybridLayer, x: Array, out: Array) -> None:
        attention, backend = layer.attention, self._device.backend

        def tell(kv: State | None) -> None:
            if kv is None:
                raise ValueError("the device has no keys and values")
            attention.forward(x, out, backend.view(Batch(_ONE, (Span(kv, 1),))))

        self._actions.append(tell)

    def _start_ffn(self, layer: HybridLayer, *, send: bool) -> Callable[[Array, Array], None]:
        """Start the host's part of an FFN; what is returned adds the FFN of x to out.

        `send` says that the host has not got x yet.
        """
        device, ffn, cold = self._device, layer.ffn, layer.host_ffn
        if cold is None:
            return lambda x, out: self._say(lambda: ffn.forward(x, out, None))
        x, total = self._x, self._total
        split = ffn if isinstance(ffn, HybridFFN) else None
        sent: list[Callable[[], tuple[Array, F32]]] = [lambda: (x, self._host_x)] if send else []
        scores = None
        if split and split.predictor:
            predict, scores = split.predictor, self._scores[:, : split.n_cold]
            at_host = scores
            sent.append(lambda: (predict(x), at_host))
        ready, done = self._task()
        self._worker.zero(self._host_sums[1])
        self._host_ffn(cold, self._host_x, self._host_sums[1], scores)
        self._tell_sent(sent, ready)

        def add(x: Array, out: Array) -> None:
            if split is None:
                self._tell_arrival(done, self._host_sums[1], out)
                return
            to = total if split.add_normed else out
            if split.add_normed:
                self._say(lambda: device.zero(to))
            self._say(lambda: split.hot.forward(x, to, None))
            self._tell_arrival(done, self._host_sums[1], to)
            if add_normed := split.add_normed:
                self._say(lambda: add_normed(to, out))

        return add

    def _tell_arrival(self, done: Flag, sums: F32, out: Array) -> None:
        self._say(lambda: self._device.receive(done, sums, out, add=True))

    def _host_ffn(self, ffn: HostFFN, x: F32, out: F32, scores: F32 | None) -> None:
        if isinstance(ffn, CpuFFN):
            self._worker.ffn(ffn.native, x, out)
        else:
            self._worker.neuron_ffn(ffn.native, x, out, scores)


def _split(layer: HybridLayer) -> HybridFFN | None:
    return layer.ffn if isinstance(layer.ffn, HybridFFN) else None
