"""The native backend: packs weights for this CPU's instruction set and runs each part as one native call."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence as ListOf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.blocks import dequantise
from hotset.backends.building import Chain
from hotset.backends.checks import check_exact, check_gate
from hotset.backends.contract import (
    F32,
    FFN,
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FFNSpec,
    HeadSpec,
    LatentSpec,
    LayerInputSpec,
    LayerInputsSpec,
    Mixer,
    NeuronFFNSpec,
    Norm,
    RecurrentSpec,
    StateShape,
)
from hotset.backends.cpu.chain import native_chain
from hotset.backends.cpu.experts import CpuExperts, PackedExperts, build_experts
from hotset.backends.cpu.packing import COPIES, Packing
from hotset.backends.cpu.parts import (
    CpuAttention,
    CpuEmbedding,
    CpuFFN,
    CpuHead,
    CpuLayerInput,
    CpuLayerInputs,
    CpuNeuronFFN,
)
from hotset.backends.cpu.recurrent import CpuRecurrent, build_recurrent, native_shape
from hotset.backends.cpu.state import CpuSequence, native_batch
from hotset.core.batch import Batch
from hotset.core.config import Activation, NormKind, Score, Way
from hotset.core.errors import CheckpointError, HotsetError, NoMemoryError
from hotset.core.limits import available_cores, physical_cores
from hotset.formats.tensor import Tensor

MAX_THREADS = 512
MAX_PARTS = 4 * MAX_THREADS

# As the native enumerations number them; a name that they do not have fails here.
_WAYS = {way: _native.WAYS[way.value] for way in Way}
_SCORES = {score: _native.SCORES["copy" if score in COPIES else score.value] for score in Score}
_NO_SCORE = _native.SCORES["none"]
_ACTIVATIONS = {activation: _native.ACTIVATIONS[activation.value] for activation in Activation}

_BANDWIDTH_BYTES = 256 << 20
"""At least so many are read to measure the memory, and far more than caches hold."""
_LEAST_BANDWIDTH_BYTES = 16 << 20
"""Fewer are read too fast to be timed."""


def cache_bytes() -> int:
    """Bytes of all last-level caches of this machine; 0 where the system does not say."""
    caches = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        with contextlib.suppress(OSError, ValueError):
            size = (index / "size").read_text().strip()
            caches[(index / "shared_cpu_list").read_text()] = int(size.removesuffix("K")) << 10
    return sum(caches.values())


def machine_parts() -> int:
    """Sums that a sparse layer's neurons are added up in at most: four to a core of this machine, or 16."""
    return min(max(16, 4 * physical_cores()), MAX_PARTS)


class CpuBackend(Packing):
    """Builds the parts; see `hotset.backends.building.Backend`.

    `threads` counts the calling thread; by default there is one to each physical core that this process may
    use. `level` is one of `levels()`, by default the best. The threads are idle outside calls; one call runs
    at a time, others wait. A sparse layer's neurons are added up in at most `parts` sums, which threads share
    among them; by default `machine_parts()`, so that results do not depend on `threads`. `ram` is a budget in
    bytes for all layers' packed experts: the coldest are given back, and packed again from the file when a
    row uses them. What one layer needs for a call stays packed, even if that is more.
    """

    name = "cpu"

    def __init__(
        self,
        threads: int | None = None,
        level: str | None = None,
        parts: int | None = None,
        ram: int | None = None,
    ) -> None:
        if threads is None:
            threads = available_cores()
        if not 1 <= threads <= MAX_THREADS:
            raise HotsetError(
                f"threads: expected 1 to {MAX_THREADS}, found {threads}; "
                f"this process may use {available_cores()} cores"
            )
        level = self.levels()[0] if level is None else level.lower()
        if level not in self.levels():
            raise HotsetError(f"level: expected one of {', '.join(self.levels())}, found {level!r}")
        parts = machine_parts() if parts is None else parts
        if not 1 <= parts <= MAX_PARTS:
            raise HotsetError(f"parts: expected 1 to {MAX_PARTS}, found {parts}")
        self.level = level
        self.parts = parts
        try:
            super().__init__(_native.Runtime(threads, level, parts), threads)
        except RuntimeError as error:
            raise HotsetError(f"threads: the system refuses {threads} threads ({error})") from None
        if ram is not None and ram < 1:
            raise HotsetError(f"ram: expected at least 1 byte, found {ram}")
        self._expert_cache = _native.ExpertCache(self._runtime, ram)

    @staticmethod
    def levels() -> list[str]:
        """Instruction sets with kernels that this CPU runs, best first."""
        return _native.kernel_levels()

    def memory_bandwidth(self, nbytes: int | None = None) -> float:
        """GB/s (1e9 bytes) at which the backend's threads together read memory, the best of a few passes.

        Each pass reads `nbytes`, which caches may hold in part; None: far more than they do.
        """
        if nbytes is None:
            nbytes = max(_BANDWIDTH_BYTES, 4 * cache_bytes())
        return self._runtime.memory_bandwidth(max(nbytes, _LEAST_BANDWIDTH_BYTES), 5) / 1e9

    @contextlib.contextmanager
    def zones(self) -> Iterator[dict[str, float]]:
        """Time the zones of what runs within, in seconds by name; filled in at its end.

        For one thread at a time: what other threads compute meanwhile is counted wrongly.
        """
        seconds: dict[str, float] = {}
        self._runtime.measure_zones(True)
        try:
            yield seconds
        finally:
            seconds |= self._runtime.zone_seconds()
            self._runtime.measure_zones(False)

    def copy(self, x: F32) -> F32:
        y: F32 = x.copy()
        return y

    def rows(self, x: F32, rows: NDArray[np.intp]) -> F32:
        y: F32 = x[rows]
        return y

    def view(self, batch: Batch) -> _native.Batch:
        return native_batch(batch)

    def embedding(self, spec: EmbeddingSpec) -> CpuEmbedding:
        """Build the token embedding; it keeps its tensors."""
        return CpuEmbedding(spec)

    def attention(self, spec: AttentionSpec, index: int = 0) -> CpuAttention:
        """Build one layer's attention."""
        hidden = spec.norm.weight.size
        q_size, kv_size = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        if spec.n_heads < 1 or spec.n_kv_heads < 1 or spec.n_heads % spec.n_kv_heads:
            raise CheckpointError(
                f"{spec.q.weight.name}: expected heads in a multiple of the number of key-value heads, "
                f"found {spec.n_heads} and {spec.n_kv_heads}"
            )
        if spec.rope and not 0 < spec.rope.dim <= spec.head_dim:
            raise CheckpointError(
                f"{spec.q.weight.name}: expected RoPE on 2 to {spec.head_dim} numbers of a head, "
                f"found {spec.rope.dim}"
            )
        native = _native.Attention(
            runtime=self._runtime,
            norm=self._norm(spec.norm, hidden),
            q=self._linear(spec.q, (1 + spec.gated) * q_size, hidden),
            k=self._linear(spec.k, kv_size, hidden) if spec.k else None,
            v=self._linear(spec.v, kv_size, hidden) if spec.v else None,
            output=self._linear(spec.output, hidden, q_size),
            n_heads=spec.n_heads,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            scale=spec.scale,
            window=spec.window,
            rope=self._rope(spec.rope),
            q_norm=self._norm_of_heads(spec.q_norm, spec.head_dim, spec.n_heads),
            k_norm=self._norm_of_heads(spec.k_norm, spec.head_dim, spec.n_kv_heads),
            v_norm=self._optional_norm(spec.v_norm, spec.head_dim),
            post_norm=self._optional_norm(spec.post_norm, hidden),
            gated=spec.gated,
            head_gate=self._linear(spec.head_gate, spec.n_heads, hidden) if spec.head_gate else None,
            sinks=spec.sinks,
            soft_cap=spec.soft_cap,
            growth=spec.growth.factor if spec.growth else 0.0,
            growth_context=spec.growth.context if spec.growth else 1,
            index=index,
        )
        return CpuAttention(native)

    def latent_attention(self, spec: LatentSpec, index: int = 0) -> CpuAttention:
        """Build one layer's multi-head latent attention."""
        return CpuAttention(self._latent_attention(spec, index))

    def recurrent(self, spec: RecurrentSpec, index: int = 0) -> CpuRecurrent:
        """Build one layer with a recurrent state."""
        return build_recurrent(self._runtime, spec, index, self._linear, self._norm)

    def ffn(self, spec: FFNSpec) -> CpuFFN:
        """Build one layer's FFN."""
        hidden, size = spec.norm.weight.size, spec.up.weight.shape[0]
        check_gate(spec.up.weight.name, spec.activation, spec.gate)
        native = _native.FFN(
            runtime=self._runtime,
            norm=self._norm(spec.norm, hidden),
            gate=self._linear(spec.gate, size, hidden) if spec.gate else None,
            up=self._linear(spec.up, size, hidden),
            down=self._linear(spec.down, hidden, size),
            activation=_ACTIVATIONS[spec.activation],
            post_norm=self._optional_norm(spec.post_norm, hidden),
        )
        return CpuFFN(native)

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0, *, scores_given: bool = False) -> CpuNeuronFFN:
        """Build one layer's FFN that is stored by neuron.

        What every token reads lies in panels like other matrices, what is read for chosen neurons by row; for
        that, types of which single rows cannot be read are rounded to the nearest that can.
        With `scores_given` it has no predictor: ``forward(x, out, view, scores)`` gets what that would say.
        """
        hidden, size = spec.norm.weight.size, spec.up.weight.shape[0]
        plan = spec.plan
        check_gate(spec.up.weight.name, spec.activation, spec.gate)
        check_exact(spec.down_t.weight.name, spec.activation, plan)
        first, second = (spec.gate, spec.up) if spec.gate else (spec.up, None)
        by_row = plan.way is Way.PREDICTOR
        # Dense as exact, so that the same numbers come out of the same kernels.
        second_by_row = by_row or spec.activation.zero_producing or plan.score is Score.GATE
        second_by_row = second_by_row and plan.score is not Score.DOWN
        first_rows = self._by_row(first) if by_row else None
        second_rows = self._by_row(second) if second and second_by_row else None
        down = self._by_row(spec.down_t)
        store = self._store([first_rows, second_rows, down], size, hidden)
        native = _native.NeuronFFN(
            runtime=self._runtime,
            norm=self._norm(spec.norm, hidden),
            first=None if by_row else self._linear(first, size, hidden),
            first_rows=self._rows(store, first_rows, size, hidden) if first_rows else None,
            second=self._linear(second, size, hidden) if second and not second_by_row else None,
            second_rows=self._rows(store, second_rows, size, hidden) if second_rows else None,
            down=self._rows(store, down, size, hidden, added=True),
            activation=_ACTIVATIONS[spec.activation],
            way=_WAYS[plan.way],
            score=_SCORES[plan.score] if plan.score else _NO_SCORE,
            predictor=[] if scores_given else self._predictor(spec, first, size, hidden),
            raw_input=plan.raw_input,
            factors=_row_lengths(spec.down_t.weight) if plan.score is Score.DOWN else None,
            post_norm=self._optional_norm(spec.post_norm, hidden),
            index=index,
        )
        return CpuNeuronFFN(native)

    def experts(self, spec: ExpertsSpec, index: int = 0) -> CpuExperts:
        """Build one layer's mixture of experts, each of which is packed when a row first uses it.

        So the tensors' bytes are read as long as the part lives.
        """
        hidden = spec.norm.weight.size
        return build_experts(
            self._runtime,
            self._expert_cache,
            spec,
            self._linear,
            lambda norm: self._norm(norm, hidden),
            _ACTIVATIONS[spec.activation],
            self.ffn(spec.beside).native if spec.beside else None,
            index,
            self.threads,
        )

    @property
    def packed_experts(self) -> PackedExperts:
        """What of the experts is packed now."""
        return PackedExperts(*self._expert_cache.counts)

    def head(self, spec: HeadSpec) -> CpuHead:
        """Build the final norm and the output projection."""
        hidden, vocab_size = spec.norm.weight.size, spec.output.weight.shape[0]
        output = self._linear(spec.output, vocab_size, hidden)
        native = _native.Head(self._runtime, self._norm(spec.norm, hidden), output, spec.soft_cap)
        return CpuHead(native, vocab_size, spec.norm)

    def chain(self, parts: ListOf[Mixer | FFN], hidden: int) -> Chain | None:
        """All parts in one native call; None if one of them is not this backend's."""
        return native_chain(parts, hidden)

    def layer_inputs(self, spec: LayerInputsSpec) -> CpuLayerInputs:
        """Build the tokens' embeddings for each layer; it keeps the table's tensor."""
        size, hidden = spec.project.weight.shape
        norm = Norm(NormKind.NONE, 0.0, np.ones(hidden, np.float32))
        project = _native.Head(
            self._runtime, self._norm(norm, hidden), self._linear(spec.project, size, hidden), 0.0
        )
        return CpuLayerInputs(spec, CpuHead(project, size, norm))

    def layer_input(self, spec: LayerInputSpec) -> CpuLayerInput:
        """Build what one of them adds."""
        size, hidden = spec.gate.weight.shape
        return CpuLayerInput(
            _native.LayerInput(
                self._runtime,
                self._linear(spec.gate, size, hidden),
                self._linear(spec.up, hidden, size),
                self._norm(spec.post_norm, hidden),
            )
        )

    def sequence(self, shape: StateShape, capacity: int, kv_type: str) -> CpuSequence:
        """Room for `capacity` positions; `kv_type` is ``f16``, ``q8_0`` or ``f32``."""
        if kv_type not in _native.KV_TYPES:
            raise HotsetError(
                f"KV cache type: expected one of {', '.join(_native.KV_TYPES)}, found {kv_type!r}"
            )
        for size in {x.size for x in shape.kv if kv_type == "q8_0" and x.size % _native.KV_BLOCK}:
            raise HotsetError(
                f"KV cache type q8_0: expected heads of a multiple of {_native.KV_BLOCK} numbers, found "
                f"{size}; use f16"
            )
        if capacity < 1:
            raise HotsetError(f"context: expected at least 1 token, found {capacity}")
        try:
            native = _native.Sequence(
                self._runtime,
                _native.KV_TYPES[kv_type],
                list(shape.kv),
                capacity,
                list(shape.cutoffs),
                list(shape.kept),
                [native_shape(layer) for layer in shape.recurrent],
            )
        except MemoryError:
            raise NoMemoryError(
                f"KV cache: no memory for {capacity} positions of {shape.n_layers} layers; "
                "ask for a smaller context"
            ) from None
        return CpuSequence(native)


def _row_lengths(tensor: Tensor) -> F32:
    """Euclidean length of each row."""
    rows = np.arange(tensor.shape[0])
    slices = (rows[start : start + 1024] for start in range(0, len(rows), 1024))
    return np.concatenate([np.linalg.norm(dequantise(tensor, part), axis=1) for part in slices])
