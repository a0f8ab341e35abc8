"""Multi-head latent attention on the GPU."""

import math
from typing import Any

import triton

from hotset.backends.checks import check_shape
from hotset.backends.contract import LatentSpec, Linear
from hotset.backends.gpu.attention import KERNEL_TYPES, SPLIT_ROWS, attention_splits, turns
from hotset.backends.gpu.device import INTERPRETED, Gpu
from hotset.backends.gpu.ffn import GpuNorm
from hotset.backends.gpu.kernels.attention import merge_splits
from hotset.backends.gpu.kernels.latent import attend_latent, head_products, keep_latent, turn_queries
from hotset.backends.gpu.matrix import Matrix, build_matrix, one_above_the_other
from hotset.backends.gpu.state import GpuView, Spans
from hotset.core.config import NormKind
from hotset.core.errors import HotsetError
from hotset.formats.tensor import Tensor

_SMALL_PIECE = 128
"""Numbers of a vector that are multiplied at once where shared memory is small."""


class GpuLatentAttention:
    """One layer's latent attention; what it keeps has number `index` in a sequence. See `LatentSpec`.

    Always absorbed: K_h turns each head's query to one of what is kept, which all heads read as their keys
    and as their values, and V_h the sums of these to the head's result.
    """

    def __init__(self, gpu: Gpu, spec: LatentSpec, index: int) -> None:
        shape, heads, hidden = spec.shape, spec.n_heads, spec.norm.weight.size
        if spec.kv_norm.kind is not NormKind.RMS or spec.kv_norm.bias is not None:
            raise HotsetError(f"{spec.kv_a.weight.name}: expected an RMS norm of what is kept")
        if spec.rope.long_frequencies:
            raise HotsetError(f"{spec.kv_a.weight.name}: expected one set of RoPE frequencies")
        check_shape(spec.k_b.name, spec.k_b.shape, (heads, shape.rank, shape.nope_dim))
        check_shape(spec.v_b.name, spec.v_b.shape, (heads, shape.value_dim, shape.rank))
        self.gpu, self.index, self.heads, self.shape, self.rope = gpu, index, heads, shape, spec.rope
        self.scale = spec.scale * math.log2(math.e)
        self.norm = GpuNorm(gpu, spec.norm, hidden)
        self.kv_norm = GpuNorm(gpu, spec.kv_norm, shape.rank)
        low = shape.query_rank
        self.q_a = build_matrix(gpu, spec.q_a, low, hidden) if spec.q_a else None
        self.q_norm = GpuNorm(gpu, spec.q_norm, low) if spec.q_norm else None
        self.q = build_matrix(gpu, spec.q, heads * shape.query_dim, low if spec.q_a else hidden)
        self.kv_a = build_matrix(gpu, spec.kv_a, shape.kept, hidden)
        self.k_b, self.v_b = (_of_heads(gpu, weight) for weight in (spec.k_b, spec.v_b))
        self.output = build_matrix(gpu, spec.output, hidden, heads * shape.value_dim)
        self.turns = gpu.upload(turns(spec.rope))

    def forward(self, x: Any, out: Any, view: GpuView) -> None:
        for block in view.blocks:
            self._forward(x[block.rows], out[block.rows], block.spans, view)

    def _forward(self, x: Any, out: Any, groups: tuple[Spans, ...], view: GpuView) -> None:
        gpu, tokens, shape, heads = self.gpu, len(x), self.shape, self.heads
        n = self.norm.input(x)
        kv = gpu.scratch("latent", tokens, shape.kept)
        self.kv_a.times(n, kv)
        if self.q_a and self.q_norm:
            low = gpu.scratch("low", tokens, shape.query_rank)
            self.q_a.times(n, low)
            n = self.q_norm.input(low)
        q = gpu.scratch("q", tokens, heads * shape.query_dim)
        self.q.times(n, q)
        absorbed = gpu.scratch("absorbed", tokens, heads * shape.rank)
        self._head_products(q, shape.query_dim, self.k_b, absorbed)
        turned = gpu.scratch("turned", tokens, heads * shape.rope_dim)
        mixed = gpu.scratch("mixed", tokens, heads * shape.rank)
        for spans in groups:
            self._prepare(kv, q, turned, spans, view)
            self._attend(absorbed, turned, mixed, spans, view)
        values = gpu.scratch("values", tokens, heads * shape.value_dim)
        self._head_products(mixed, shape.rank, self.v_b, values)
        self.output.times(values, out, add=True)

    def _head_products(self, x: Any, stride: int, matrix: Matrix, out: Any) -> None:
        """out (T, heads, rows) of x, whose heads' numbers are `stride` apart."""
        gpu, tokens, rows = self.gpu, len(x), matrix.rows // self.heads
        bm = min(64, max(16, triton.next_power_of_2(tokens)))
        br = bc = 64
        if gpu.multiprocessors == INTERPRETED:
            br, bc = (max(32, triton.next_power_of_2(size)) for size in (rows, matrix.cols))
        head_products[triton.cdiv(tokens, bm), triton.cdiv(rows, br), self.heads](
            x, stride, *matrix.arrays, out, tokens, self.heads, rows, matrix.cols, BITS=matrix.bits,
            SCALES=matrix.scaled, W=matrix.tile_words, K=matrix.tile_fields,
            PRECISION="ieee" if gpu.capability < 80 else "tf32x3", BM=bm, BR=br, BC=bc,
            EVEN=rows % br == 0 and matrix.cols % bc == 0, num_warps=4, num_stages=2,
        )  # fmt: skip

    def _prepare(self, kv: Any, q: Any, turned: Any, spans: Spans, view: GpuView) -> None:
        """What is kept of the spans' rows, and the turned parts of their queries."""
        shape, rope, count = self.shape, self.rope, len(spans.table)
        keep_latent[spans.most, count](
            kv, spans.table, view.before[self.index], self.turns, self.kv_norm.weight, shape.rank,
            shape.rope_dim, rope.magnitude, self.kv_norm.eps, KV=KERNEL_TYPES[view.dtype],
            INTERLEAVED=rope.interleaved, BLOCK=max(32, triton.next_power_of_2(shape.kept)), num_warps=4,
        )  # fmt: skip
        at_once = triton.next_power_of_2(self.heads) if self.gpu.multiprocessors == INTERPRETED else 1
        turn_queries[spans.most, triton.cdiv(self.heads, at_once), count](
            q, turned, spans.table, self.turns, self.heads, shape.query_dim, shape.rope_dim, rope.magnitude,
            INTERLEAVED=rope.interleaved, BH=at_once, BLOCK=triton.next_power_of_2(shape.rope_dim),
            num_warps=1,
        )  # fmt: skip

    def _attend(self, q: Any, turned: Any, mixed: Any, spans: Spans, view: GpuView) -> None:
        """Write the spans' rows of mixed (T, heads rank)."""
        gpu, tokens, shape, count = self.gpu, len(q), self.shape, len(spans.table)
        rows = spans.most * self.heads
        bl, bd = (max(16, triton.next_power_of_2(size)) for size in (shape.rank, shape.rope_dim))
        pieces = 1 if gpu.capability >= 80 else triton.cdiv(bl, _SMALL_PIECE)
        bm = bs = 16  # as much as shared memory holds
        blocks = triton.cdiv(rows, bm)
        most_splits = min(spans.capacity // (4 * bs), SPLIT_ROWS // tokens)
        splits = attention_splits(blocks * count, most_splits, gpu.multiprocessors)
        part = gpu.scratch("part", tokens, splits, self.heads * shape.rank) if splits > 1 else mixed
        tops = gpu.scratch("tops", tokens, splits, self.heads)
        sums = gpu.scratch("sums_of_weights", tokens, splits, self.heads)
        attend_latent[blocks, splits * count, pieces](
            q, turned, spans.table, view.before[self.index], part, tops, sums, tokens, self.heads, shape.rank,
            shape.rope_dim, self.scale, splits, KV=KERNEL_TYPES[view.dtype], BM=bm, BS=bs, PIECES=pieces,
            BL=bl // pieces, BD=bd, num_warps=4, num_stages=1,
        )  # fmt: skip
        if splits > 1:
            merge_splits[rows, count](
                part, tops, sums, spans.table, mixed, mixed, tokens, self.heads, shape.rank, splits,
                CODES=False, SPLITS=triton.next_power_of_2(splits), BD=bl, num_warps=4,
            )  # fmt: skip


def _of_heads(gpu: Gpu, weight: Tensor) -> Matrix:
    """The heads' matrices (heads, rows, cols), one above the other."""
    whole = one_above_the_other(weight, range(weight.shape[0]))
    return build_matrix(gpu, Linear(whole), *whole.shape)
