"""Attention on the GPU."""

import math
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from hotset.backends.contract import AttentionSpec, Norm
from hotset.backends.gpu.device import INTERPRETED, Gpu
from hotset.backends.gpu.ffn import GpuNorm
from hotset.backends.gpu.kernels.attention import attend, gate_heads, merge_splits, prepare_heads
from hotset.backends.gpu.matrix import Input, build_matrix, build_stacked, code_room, times_stacked
from hotset.backends.gpu.state import GpuView, Spans
from hotset.core.batch import BLOCK_ROWS
from hotset.core.config import RopeConfig
from hotset.core.errors import CheckpointError, HotsetError

KERNEL_TYPES: dict[Any, Any] = {torch.float16: tl.float16, torch.float32: tl.float32, torch.int8: tl.int8}
"""Of keys and values."""
_ANY_DISTANCE = 1 << 30
SPLIT_ROWS = 2 * BLOCK_ROWS
"""There is room for so many rows' sums over parts of the keys."""


class GpuAttention:
    """One layer's attention, whose keys and values have number `index` in a sequence.

    See `hotset.backends.contract.Attention`. Decoding is six kernels or more: the norm, q, k and v (those of
    one type in one), heads, attention, the merge of its splits, and the output.
    """

    def __init__(self, gpu: Gpu, spec: AttentionSpec, index: int) -> None:
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
        if spec.rope and len(spec.rope.inverse_frequencies) * 2 != spec.rope.dim:
            raise CheckpointError(
                f"RoPE: expected {spec.rope.dim // 2} frequencies, found {len(spec.rope.inverse_frequencies)}"
            )
        if spec.gated and spec.q_norm and spec.q_norm.weight.size != spec.head_dim:
            raise HotsetError(f"{spec.q.weight.name}: the GPU backend has no norm of all gated queries yet")
        if spec.k and not spec.v and spec.k_norm and spec.k_norm.weight.size != spec.head_dim:
            raise HotsetError(f"{spec.k.weight.name}: the GPU backend has no norm of all keys of values yet")
        self.gpu, self.index = gpu, index
        self.n_heads, self.n_kv_heads, self.head_dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
        self.window = spec.window or _ANY_DISTANCE
        self.scale = spec.scale * math.log2(math.e)
        self.soft_cap = spec.soft_cap * math.log2(math.e)
        self.gated = spec.gated
        self.norm = GpuNorm(gpu, spec.norm, hidden)
        parts = [(spec.q, q_size * (1 + spec.gated))]
        parts += [(linear, kv_size) for linear in (spec.k, spec.v) if linear]
        self.parts = len(parts)
        self.projections = build_stacked(gpu, parts, hidden)
        self.projected = sum(rows for _, rows in parts)
        self.head_gate = build_matrix(gpu, spec.head_gate, self.n_heads, hidden) if spec.head_gate else None
        self.sinks = None if spec.sinks is None else gpu.upload(np.asarray(spec.sinks, np.float32))
        self.output = build_matrix(gpu, spec.output, hidden, q_size)
        # Norms of heads belong to their kernel; those of all queries, or keys, as one vector come before.
        self.q_norm, self.all_q_norm = _head_norm(gpu, spec.q_norm, spec.head_dim, q_size)
        self.k_norm, self.all_k_norm = _head_norm(gpu, spec.k_norm, spec.head_dim, kv_size)
        self.v_norm = GpuNorm(gpu, spec.v_norm, spec.head_dim) if spec.v_norm else None
        self.growth = spec.growth
        self.post_norm = GpuNorm(gpu, spec.post_norm, hidden) if spec.post_norm else None
        self.rope = spec.rope
        self.turns = gpu.upload(turns(spec.rope))

    def forward(self, x: Any, out: Any, view: GpuView) -> None:
        for block in view.blocks:
            self._forward(x[block.rows], out[block.rows], block.spans, view)

    def _forward(self, x: Any, out: Any, groups: tuple[Spans, ...], view: GpuView) -> None:
        tokens, gpu = len(x), self.gpu
        n = self.norm.input(x)
        qkv = gpu.scratch("qkv", tokens, self.projected)
        times_stacked(self.projections, n, qkv)
        keys = (1 + self.gated) * self.n_heads * self.head_dim
        for whole, first in ((self.all_q_norm, 0), (self.all_k_norm, keys)):
            if whole:
                part = qkv[:, first : first + whole.size]
                whole.forward(part, part)
        q = gpu.scratch("q", tokens, self.n_heads * self.head_dim)
        mixed = Input(gpu, gpu.scratch("mixed", tokens, self.n_heads * self.head_dim))
        for spans in groups:
            self._prepare(qkv, q, spans, view)
            mixed = self._attend(q, mixed.numbers, spans, view)
        if self.gated:
            self._gate(mixed.numbers, qkv)
        if self.head_gate:
            gates = gpu.scratch("head gates", tokens, self.n_heads)
            self.head_gate.times(n, gates)
            self._gate(mixed.numbers, gates)
        if self.post_norm is None:
            self.output.times(mixed, out, add=True)
        else:
            y = gpu.scratch("y", *x.shape)
            self.output.times(mixed, y)
            self.post_norm.forward(y, out, add=True)

    def _prepare(self, qkv: Any, q: Any, spans: Spans, view: GpuView) -> None:
        rope, growth = self.rope, self.growth
        any_norm = self.q_norm or self.k_norm or self.v_norm or self.norm
        q_norm, k_norm, v_norm = (norm or any_norm for norm in (self.q_norm, self.k_norm, self.v_norm))
        n_all = self.n_heads + (2 * self.n_kv_heads if self.parts > 1 else 0)
        at_once = triton.next_power_of_2(n_all) if self.gpu.multiprocessors == INTERPRETED else 1
        prepare_heads[spans.most, triton.cdiv(n_all, at_once), len(spans.table)](
            qkv, q, spans.table, view.before[self.index], self.turns,
            q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias, v_norm.weight,
            self.n_heads, self.n_kv_heads, self.head_dim, rope.dim if rope else 0,
            rope.magnitude if rope else 1.0, rope.long_from if rope else 0, growth.factor if growth else 0.0,
            growth.context if growth else 1, any_norm.eps, KV=KERNEL_TYPES[view.dtype], PARTS=self.parts,
            Q_NORM=self.q_norm is not None, K_NORM=self.k_norm is not None, V_NORM=self.v_norm is not None,
            LAYER=any_norm.layer, Q_BIAS=q_norm.has_bias, K_BIAS=k_norm.has_bias, ROPE=rope is not None,
            INTERLEAVED=bool(rope and rope.interleaved),
            LONG=bool(rope and rope.long_frequencies), GROWS=growth is not None, GATED=self.gated,
            BH=at_once, BLOCK=triton.next_power_of_2(self.head_dim), num_warps=1,
        )  # fmt: skip

    def _attend(self, q: Any, mixed: Any, spans: Spans, view: GpuView) -> Input:
        """Write the spans' rows of mixed (T, heads d)."""
        gpu, tokens = self.gpu, len(q)
        rows = spans.most * self.n_heads // self.n_kv_heads
        bd = max(16, triton.next_power_of_2(self.head_dim))
        # As much as shared memory holds.
        most = max(16, (64 if gpu.capability >= 80 else 32) // max(1, bd // 128))
        bm = min(most, max(16, triton.next_power_of_2(rows)))
        bs = max(16, most // 2) if view.dtype == torch.float32 else most
        blocks, count = triton.cdiv(rows, bm), len(spans.table)
        programs = blocks * self.n_kv_heads * count
        most_splits = min(spans.capacity // (4 * bs), SPLIT_ROWS // tokens)
        splits = attention_splits(programs, most_splits, gpu.multiprocessors)
        part = gpu.scratch("part", tokens, splits, self.n_heads * self.head_dim) if splits > 1 else mixed
        tops = gpu.scratch("tops", tokens, splits, self.n_heads)
        sums = gpu.scratch("sums_of_weights", tokens, splits, self.n_heads)
        attend[blocks, self.n_kv_heads, splits * count](
            q, spans.table, view.before[self.index], part, tops, sums,
            q if self.sinks is None else self.sinks, tokens, self.n_heads, self.n_kv_heads, self.head_dim,
            self.scale, self.window, self.soft_cap, splits, KV=KERNEL_TYPES[view.dtype],
            CAPPED=self.soft_cap > 0, SINKS=self.sinks is not None,
            FLOATS=gpu.capability < 80 and bd > 256, BM=bm, BS=bs, BD=bd, num_warps=4, num_stages=2,
        )  # fmt: skip
        codes = None
        if splits > 1:
            gated = self.gated or self.head_gate
            if tokens == 1 and not gated and bd == self.head_dim and bd % 32 == 0:
                codes = code_room(gpu, mixed.shape[1])
            merge_splits[spans.most * self.n_heads, count](
                part, tops, sums, spans.table, mixed, mixed if codes is None else codes, tokens,
                self.n_heads, self.head_dim, splits, CODES=codes is not None,
                SPLITS=triton.next_power_of_2(splits), BD=bd, num_warps=4,
            )  # fmt: skip
        return Input(gpu, mixed, codes)

    def _gate(self, mixed: Any, gates: Any) -> None:
        """Multiply heads by gates: those that follow queries, or one for each head."""
        n = mixed.numel()
        gate_heads[(triton.cdiv(n, 1024),)](
            mixed, gates, gates.shape[1], n, self.n_heads, self.head_dim,
            BY_NUMBER=gates.shape[1] > self.n_heads, BLOCK=1024, num_warps=4,
        )  # fmt: skip


def attention_splits(programs: int, most: int, multiprocessors: int) -> int:
    """Parts to cut the keys into: as many as fill the GPU twice, at most `most` and 64.

    It does not depend on the tokens in the cache, so that a recorded step is good for any.
    """
    return max(1, min(2 * multiprocessors // programs, most, 64))


def turns(rope: RopeConfig | None) -> Any:
    """Turns per position, float64, those of long sequences last; at least one number."""
    frequencies = (*rope.inverse_frequencies, *rope.long_frequencies) if rope else (0.0,)
    return np.array(frequencies, np.float64) / (2 * math.pi)


def _head_norm(gpu: Gpu, norm: Norm | None, one: int, all: int) -> tuple[GpuNorm | None, GpuNorm | None]:
    """A norm of each head's `one` numbers, or one of all of them."""
    if norm and norm.weight.size == all != one:
        return None, GpuNorm(gpu, norm, all)
    return (GpuNorm(gpu, norm, one) if norm else None), None
