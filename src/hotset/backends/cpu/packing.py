"""Weights as the native parts take them: matrices, rows by neuron, norms and rotations."""

from hotset import _native
from hotset.backends.blocks import dequantise, neuron_type, round_to_nearest, store_as
from hotset.backends.checks import check_shape
from hotset.backends.codebooks import native_type
from hotset.backends.contract import LatentSpec, Linear, NeuronFFNSpec, Norm
from hotset.backends.cpu.file_mapping import is_file_mapping
from hotset.backends.low_bit import Q2, two_bit_blocks
from hotset.core.config import NormKind, RopeConfig, Score
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats.tensor import TensorType

COPIES = (Score.GATE_Q4, Score.GATE_Q2)
"""Scores by a copy of the gate in few bits."""
_NORMS = {NormKind.RMS: 0, NormKind.LAYER: 1, NormKind.NONE: 2}


class Packing:
    """Packs weights into a runtime's memory; layers with one rotation share it."""

    def __init__(self, runtime: _native.Runtime, threads: int) -> None:
        self._runtime = runtime
        self.threads = threads
        self._ropes: dict[RopeConfig, _native.Rope] = {}

    def _predictor(self, spec: NeuronFFNSpec, first: Linear, size: int, hidden: int) -> list[_native.Linear]:
        if spec.plan.score in (Score.LOW_RANK, Score.LOW_RANK_RELU):
            fc1, fc2 = spec.predictor
            width = fc1.weight.shape[0]
            return [self._linear(fc1, width, hidden), self._linear(fc2, size, width)]
        if spec.plan.score not in COPIES:
            return []
        weight = first.weight
        if hidden % 32:
            raise CheckpointError(
                f"{weight.name}: {spec.plan.score.value}: expected rows of a multiple of 32 numbers, "
                f"found {hidden}"
            )
        if spec.plan.score is Score.GATE_Q2:
            type, data = Q2, two_bit_blocks(dequantise(weight)).reshape(-1)
        else:
            type = int(TensorType.Q4_0)
            data = round_to_nearest(weight.name, dequantise(weight), TensorType.Q4_0, self.threads).data
        return [_native.Linear(self._runtime, type, size, hidden, data, False, first.bias)]

    def _by_row(self, linear: Linear) -> Linear:
        """The matrix in a type of which single rows can be read."""
        weight = linear.weight
        type = neuron_type(weight.type, weight.shape[1])
        if type is weight.type and weight.scale is None:
            return linear
        return Linear(store_as(weight.name, dequantise(weight), type, self.threads), linear.bias)

    def _store(self, linears: list[Linear | None], rows: int, cols: int) -> _native.NeuronStore:
        """Memory for these matrices (rows, cols), whose rows are read by neuron in this order."""
        weights = [linear.weight for linear in linears if linear]
        for weight in weights:
            check_shape(weight.name, weight.shape, (rows, cols))
        try:
            return _native.NeuronStore(self._runtime, rows, cols, [int(weight.type) for weight in weights])
        except MemoryError:
            size = sum(weight.nbytes for weight in weights) / 1e6
            raise HotsetError(f"{weights[-1].name}: no memory for its neurons' {size:.0f} MB") from None

    def _rows(
        self, store: _native.NeuronStore, linear: Linear, rows: int, cols: int, added: bool = False
    ) -> _native.NeuronRows:
        weight, bias = linear.weight, linear.bias
        if bias is not None:
            check_shape(f"{weight.name}: bias", bias.shape, (cols if added else rows,))
        return _native.NeuronRows(
            store, int(weight.type), added, rows, cols, weight.data, is_file_mapping(weight.data), bias
        )

    def _linear(self, linear: Linear, rows: int, cols: int) -> _native.Linear:
        weight, bias = linear.weight, linear.bias
        check_shape(weight.name, weight.shape, (rows, cols))
        if bias is not None:
            check_shape(f"{weight.name}: bias", bias.shape, (rows,))
        try:
            return _native.Linear(
                self._runtime,
                native_type(weight.type),
                rows,
                cols,
                weight.data,
                is_file_mapping(weight.data),
                bias,
                1.0 if weight.scale is None else float(weight.scale[0]),
            )
        except MemoryError:
            raise HotsetError(f"{weight.name}: no memory for its {weight.nbytes / 1e6:.0f} MB") from None

    def _latent_attention(self, spec: LatentSpec, index: int) -> _native.LatentAttention:
        hidden, shape = spec.norm.weight.size, spec.shape
        inputs = shape.query_rank if spec.q_a else hidden
        heads = range(spec.n_heads)
        check_shape(spec.k_b.name, spec.k_b.shape, (spec.n_heads, shape.rank, shape.nope_dim))
        check_shape(spec.v_b.name, spec.v_b.shape, (spec.n_heads, shape.value_dim, shape.rank))
        rope = self._rope(spec.rope)
        assert rope is not None
        return _native.LatentAttention(
            runtime=self._runtime,
            norm=self._norm(spec.norm, hidden),
            q_a=self._linear(spec.q_a, inputs, hidden) if spec.q_a else None,
            q_norm=self._optional_norm(spec.q_norm, inputs),
            q=self._linear(spec.q, spec.n_heads * shape.query_dim, inputs),
            kv_a=self._linear(spec.kv_a, shape.kept, hidden),
            kv_norm=self._norm(spec.kv_norm, shape.rank),
            k_b=[self._linear(Linear(spec.k_b.part(i)), shape.rank, shape.nope_dim) for i in heads],
            v_b=[self._linear(Linear(spec.v_b.part(i)), shape.value_dim, shape.rank) for i in heads],
            output=self._linear(spec.output, hidden, spec.n_heads * shape.value_dim),
            scale=spec.scale,
            rope=rope,
            index=index,
        )

    def _norm(self, norm: Norm, size: int) -> _native.Norm:
        check_shape("norm", norm.weight.shape, (size,))
        return _native.Norm(_NORMS[norm.kind], norm.eps, norm.weight, norm.bias)

    def _norm_of_heads(self, norm: Norm | None, head_dim: int, heads: int) -> _native.Norm | None:
        """A norm of every head, or of all heads as one vector."""
        whole = norm is not None and norm.weight.size == heads * head_dim
        return self._optional_norm(norm, heads * head_dim if whole else head_dim)

    def _optional_norm(self, norm: Norm | None, size: int) -> _native.Norm | None:
        return self._norm(norm, size) if norm else None

    def _rope(self, rope: RopeConfig | None) -> _native.Rope | None:
        if rope is None:
            return None
        if len(rope.inverse_frequencies) * 2 != rope.dim:
            raise CheckpointError(
                f"RoPE: expected {rope.dim // 2} frequencies, found {len(rope.inverse_frequencies)}"
            )
        if rope not in self._ropes:
            self._ropes[rope] = _native.Rope(
                rope.inverse_frequencies,
                rope.magnitude,
                rope.interleaved,
                rope.long_frequencies,
                rope.long_from,
            )
        return self._ropes[rope]
