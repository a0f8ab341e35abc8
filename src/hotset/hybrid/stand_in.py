"""The CPU in the GPU's role: the same executor, splits, flags and copies on a machine without a GPU.

Its stream is the calling thread, so everything is done as soon as it is said; the host's worker runs beside
it on a thread of its own, as it would beside a GPU. Only the time it takes means nothing.
"""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotset import _native
from hotset.backends.base import F32, AttentionSpec, FFNSpec, HeadSpec, Linear, NeuronFFNSpec, Norm
from hotset.backends.cpu import CpuBackend, CpuHead, CpuNeuronFFN
from hotset.backends.reference import normalise, predict, predictor_matrices
from hotset.config import Score
from hotset.hybrid.device import DeviceMemoryError, Event, Flag

_Spec = TypeVar("_Spec")
_Part = TypeVar("_Part")

_LOOK_SECONDS = 0.05
"""Between looks at whether the user has interrupted."""

_NUMBER_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}


class _Memory:
    """So many bytes, of which each thing that is alive holds some."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    def hold(self, owner: object, nbytes: int) -> None:
        self.used += nbytes
        weakref.finalize(owner, self._release, nbytes)

    def check(self, what: str, nbytes: int) -> None:
        if self.used + nbytes > self.capacity:
            raise DeviceMemoryError(
                f"the device is full: {what} needs {nbytes / 1e6:.1f} MB, and {self.used / 1e6:.1f} of "
                f"{self.capacity / 1e6:.1f} MB are taken; ask for a smaller budget (--vram)"
            )

    def _release(self, nbytes: int) -> None:
        self.used -= nbytes


class _MeteredBackend(CpuBackend):
    """Counts what its parts would take of a device's memory."""

    def __init__(self, memory: _Memory, threads: int) -> None:
        super().__init__(threads=threads)
        self._memory = memory

    def attention(self, spec: AttentionSpec) -> _native.Attention:
        """See `CpuBackend`."""
        return self._built("attention", super().attention, spec, (spec.q, spec.k, spec.v, spec.output))

    def ffn(self, spec: FFNSpec) -> _native.FFN:
        """See `CpuBackend`."""
        return self._built("an FFN", super().ffn, spec, (spec.gate, spec.up, spec.down))

    def neuron_ffn(self, spec: NeuronFFNSpec, *, scores_given: bool = False) -> CpuNeuronFFN:
        """See `CpuBackend`."""
        return self._built("an FFN", super().neuron_ffn, spec, (spec.gate, spec.up, spec.down_t))

    def head(self, spec: HeadSpec) -> CpuHead:
        """See `CpuBackend`."""
        return self._built("the head", super().head, spec, (spec.output,))

    def kv_cache(
        self, *, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, type: str
    ) -> _native.KVCache:
        """See `CpuBackend`."""
        nbytes = int(2 * n_layers * n_kv_heads * head_dim * capacity * _NUMBER_BYTES.get(type, 0))
        self._memory.check("the KV cache", nbytes)
        kv = super().kv_cache(
            n_layers=n_layers, n_kv_heads=n_kv_heads, head_dim=head_dim, capacity=capacity, type=type
        )
        self._memory.hold(kv, nbytes)
        return kv

    def _built(
        self, what: str, build: Callable[[_Spec], _Part], spec: _Spec, linears: tuple[Linear | None, ...]
    ) -> _Part:
        nbytes = sum(linear.weight.nbytes for linear in linears if linear is not None)
        self._memory.check(what, nbytes)
        part = build(spec)
        self._memory.hold(part, nbytes)
        return part


class _Past:
    """An event of a stream that is never behind."""

    def wait(self) -> None:
        pass


class StandInDevice:
    """A device of `vram` bytes, of which only weights and KV caches are counted; see `Device`."""

    name = "stand-in"

    def __init__(self, vram: int = 1 << 62, *, threads: int = 1) -> None:
        self.memory = _Memory(vram)
        self.pinned_memory = _Memory(1 << 62)
        self.backend = _MeteredBackend(self.memory, threads)

    def free_bytes(self) -> int:
        """See `Device`."""
        return self.memory.capacity - self.memory.used

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See `Device`."""
        array = np.zeros(shape, dtype)
        self.pinned_memory.hold(array, array.nbytes)
        return array

    def empty(self, shape: tuple[int, ...]) -> F32:
        """See `Device`."""
        return np.empty(shape, np.float32)

    def upload(self, x: F32, out: F32) -> None:
        """See `Device`."""
        np.copyto(out, x)

    download = upload
    assign = upload

    def zero(self, out: F32) -> None:
        """See `Device`."""
        out.fill(0)

    def add(self, x: F32, out: F32) -> None:
        """See `Device`."""
        out += x

    def add_normed(self, norm: Norm, x: F32, out: F32) -> None:
        """See `Device`."""
        out += normalise(x, norm)

    def predictor(self, spec: NeuronFFNSpec) -> Callable[[F32], F32]:
        """See `Device`."""
        matrices, rectified = predictor_matrices(spec), spec.plan.score is Score.LOW_RANK_RELU

        def scores(x: F32) -> F32:
            read = x if spec.plan.raw_input else normalise(x, spec.norm)
            return np.ascontiguousarray(predict(matrices, read, rectified))

        return scores

    def raise_flag(self, flag: Flag) -> None:
        """See `Device`."""
        _native.raise_flag(flag)

    def take_flag(self, flag: Flag) -> None:
        """See `Device`."""
        while not _native.take_flag(flag, _LOOK_SECONDS):
            pass

    def synchronize(self) -> None:
        """See `Device`."""

    def mark(self) -> Event:
        """See `Device`."""
        return _Past()

    def follow(self, event: Event) -> None:
        """See `Device`."""
        event.wait()

    def aside(self) -> AbstractContextManager[None]:
        """See `Device`."""
        return nullcontext()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """See `Device`."""
        return step
