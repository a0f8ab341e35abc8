"""The CPU in the GPU's role: the same executor, splits, packets and copies on a machine without a GPU.

Its stream is the calling thread, so everything is done as soon as it is said; the host's worker runs beside
it on a thread of its own, as it would beside a GPU. Only the time it takes means nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.blocks import gpu_bytes
from hotset.backends.building import Backend
from hotset.backends.contract import (
    F32,
    FFN,
    AttentionSpec,
    BatchView,
    DeltaNetSpec,
    ExpertsSpec,
    FFNSpec,
    Head,
    HeadSpec,
    LatentSpec,
    Linear,
    NeuronFFNSpec,
    Norm,
    RecurrentSpec,
    StateShape,
)
from hotset.backends.cpu import (
    CpuAttention,
    CpuBackend,
    CpuExperts,
    CpuFFN,
    CpuHead,
    CpuNeuronFFN,
    CpuRecurrent,
    CpuSequence,
)
from hotset.backends.maths import ACTIVATIONS, normalise, predict, predictor_matrices
from hotset.core.batch import Batch
from hotset.core.config import Score
from hotset.hybrid.device import Packet, ResidentExperts, Slot
from hotset.hybrid.ffn import build_ffn
from hotset.testing.host_stream import HostStream, Memory
from hotset.testing.resident import StandInExperts

_Spec = TypeVar("_Spec")
_Part = TypeVar("_Part")

_LOOK_SECONDS = 0.05
"""Between looks at whether the user has interrupted."""

_NUMBER_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}


def chosen_row(scores: F32, cutoff: np.float32, *, values: bool) -> Iterator[tuple[slice, F32]]:
    """What `Device.send_chosen` writes of a row of scores (F,), and to which of its words."""
    bit_words = -(-len(scores) // 32)
    if np.isnan(cutoff):
        yield slice(bit_words, None), np.ascontiguousarray(scores)
        return
    bits = np.zeros(32 * bit_words, np.bool_)
    bits[: len(scores)] = ~(scores < cutoff)
    yield slice(bit_words), np.packbits(bits, bitorder="little").view(np.float32)
    for first in range(0, len(scores) if values else 0, 32):
        own = scores[first : first + 32][bits[first : first + 32][: len(scores) - first]]
        if len(own):
            yield slice(bit_words + first, bit_words + first + len(own)), own


class _MeteredBackend(CpuBackend):
    """Counts what its parts would take of a device's memory."""

    def __init__(self, memory: Memory, threads: int) -> None:
        super().__init__(threads=threads)
        self._memory = memory

    def attention(self, spec: AttentionSpec, index: int = 0) -> CpuAttention:
        build = partial(super().attention, index=index)
        return self._built("attention", build, spec, (spec.q, spec.k, spec.v, spec.output))

    def ffn(self, spec: FFNSpec) -> CpuFFN:
        return self._built("an FFN", super().ffn, spec, (spec.gate, spec.up, spec.down))

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0, *, scores_given: bool = False) -> CpuNeuronFFN:
        build = partial(super().neuron_ffn, index=index)
        return self._built("an FFN", build, spec, (spec.gate, spec.up, spec.down_t))

    def latent_attention(self, spec: LatentSpec, index: int = 0) -> CpuAttention:
        build = partial(super().latent_attention, index=index)
        parts = (spec.q_a, spec.q, spec.kv_a, Linear(spec.k_b), Linear(spec.v_b), spec.output)
        return self._built("attention", build, spec, parts)

    def recurrent(self, spec: RecurrentSpec, index: int = 0) -> CpuRecurrent:
        build = partial(super().recurrent, index=index)
        linears = (spec.qkv, spec.z) if isinstance(spec, DeltaNetSpec) else (spec.input,)
        return self._built("a recurrent layer", build, spec, (*linears, spec.output))

    def experts(self, spec: ExpertsSpec, index: int = 0) -> CpuExperts:
        build = partial(super().experts, index=index)
        return self._built("experts", build, spec, (spec.gate, spec.up, spec.down))

    def resident_experts(self, spec: ExpertsSpec, experts: Sequence[int]) -> StandInExperts:
        """A mixture of which only these experts are counted."""
        stacks = (linear for linear in (spec.gate, spec.up, spec.down) if linear)
        nbytes = sum(gpu_bytes(stack.weight) for stack in stacks) // spec.shape.count * (len(experts) + 1)
        self._memory.check("experts", nbytes)
        part = StandInExperts(super().experts(spec), spec.shape.count, experts)
        self._memory.hold(part, nbytes)
        return part

    def head(self, spec: HeadSpec) -> CpuHead:
        return self._built("the head", super().head, spec, (spec.output,))

    def sequence(self, shape: StateShape, capacity: int, kv_type: str) -> CpuSequence:
        numbers = capacity * sum(kept.numbers for kept in shape.kv)
        nbytes = int(numbers * _NUMBER_BYTES.get(kv_type, 0))
        self._memory.check("the KV cache", nbytes)
        sequence = super().sequence(shape, capacity, kv_type)
        self._memory.hold(sequence, nbytes)
        return sequence

    def _built(
        self, what: str, build: Callable[[_Spec], _Part], spec: _Spec, linears: tuple[Linear | None, ...]
    ) -> _Part:
        nbytes = sum(gpu_bytes(linear.weight) for linear in linears if linear is not None)
        self._memory.check(what, nbytes)
        part = build(spec)
        self._memory.hold(part, nbytes)
        return part


class StandInDevice(HostStream):
    """A device of `vram` bytes, of which only weights and KV caches are counted; see `Device`."""

    name = "stand-in"

    def __init__(self, vram: int = 1 << 62, *, threads: int = 1) -> None:
        super().__init__()
        self.memory = Memory(vram)
        self.number = self.rows = 0  # of the present step
        self._metered = _MeteredBackend(self.memory, threads)
        self.backend: Backend = self._metered

    def free_bytes(self) -> int:
        return self.memory.capacity - self.memory.used

    def empty(self, shape: tuple[int, ...]) -> F32:
        return np.empty(shape, np.float32)

    def upload(self, x: F32, out: F32) -> None:
        np.copyto(out, x)

    download = upload
    assign = upload

    def zero(self, out: F32) -> None:
        out.fill(0)

    def add(self, x: F32, out: F32) -> None:
        out += x

    def scale(self, x: F32, factor: float) -> None:
        x *= np.float32(factor)

    def normed_adder(self, norm: Norm) -> Callable[[F32, F32], None]:

        def add(x: F32, out: F32) -> None:
            out += normalise(x, norm)

        return add

    def resident_experts(self, spec: ExpertsSpec, experts: Sequence[int]) -> ResidentExperts:
        return self._metered.resident_experts(spec, experts)

    def logits(self, head: Head, x: F32) -> F32:
        return head.forward(x)

    def begin(self, control: NDArray[np.uint32]) -> None:
        self.number, self.rows = map(int, control)

    def send(self, x: F32, to: Packet) -> None:
        _native.write_packet(x[: self.rows], to[: self.rows], self.number)

    def send_chosen(self, scores: F32, cutoffs: F32, to: Packet, *, values: bool = False) -> None:
        for row in range(self.rows):
            for words, said in chosen_row(scores[row], cutoffs[row], values=values):
                _native.write_packet(said[None], to[row : row + 1, words], self.number)

    def receive(self, x: Packet, out: F32, *, add: bool) -> None:
        arrived, rows = np.empty_like(out[: self.rows]), out[: self.rows]
        while not _native.take_packet(x[: self.rows], self.number, arrived, _LOOK_SECONDS):
            pass
        np.copyto(rows, rows + arrived if add else arrived)

    def gave_up(self, number: int) -> bool:
        return False

    def slot(self) -> Slot:
        """Whatever it was filled with before is given back."""
        held: list[FFN] = []

        def fill(spec: FFNSpec | NeuronFFNSpec, index: int) -> FFN:
            held.clear()
            held.append(build_ffn(spec, self.backend, index))
            return held[0]

        return fill

    def record_batches(self, tell: Callable[[int, BatchView], None]) -> Callable[[Batch], None]:
        """Nothing is recorded, so each batch is told as it is."""
        return lambda batch: tell(len(batch.tokens), self.backend.view(batch))

    def predictor(self, spec: NeuronFFNSpec) -> Callable[[F32], F32]:
        matrices, rectified = predictor_matrices(spec), spec.plan.score is Score.LOW_RANK_RELU

        def scores(x: F32) -> F32:
            read = x if spec.plan.raw_input else normalise(x, spec.norm)
            return np.ascontiguousarray(predict(matrices, read, rectified))

        return scores

    def gates(self, spec: NeuronFFNSpec) -> Callable[[F32], F32]:
        first, act = spec.gate or spec.up, ACTIVATIONS[spec.activation]
        nbytes = gpu_bytes(first.weight)
        self.memory.check("gates", nbytes)
        matrix = first.weight.to_float32(), first.bias

        def values(x: F32) -> F32:
            return np.ascontiguousarray(act(predict([matrix], normalise(x, spec.norm), rectified=False)))

        self.memory.hold(values, nbytes)
        return values
