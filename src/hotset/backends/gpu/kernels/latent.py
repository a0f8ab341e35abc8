"""Multi-head latent attention, absorbed: heads share one vector of a position, its key and its value.

Of a position are kept l, normalised (rank numbers), and behind it k, turned by RoPE (rope_dim), as one row of
the keys that `hotset.backends.gpu.kernels.attention` describes; values are not kept.
"""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.attention import (
    angle_of,
    dot,
    keys_of,
    load_row,
    row_size,
    rows_of,
    store_row,
)
from hotset.backends.gpu.kernels.norm import moments
from hotset.backends.gpu.kernels.tiles import weights


@triton.jit
def _turned(x_ptr, c, mask, size, position, frequency_ptr, magnitude, INTERLEAVED: tl.constexpr):
    """Numbers c of vectors of `size`, all of which RoPE turns."""
    if INTERLEAVED:
        partner, pair, second = c ^ 1, c // 2, c % 2 == 1
    else:
        half = size // 2
        partner = tl.where(c < half, c + half, c - half)
        pair, second = tl.where(c < half, c, c - half), c >= half
    angle = angle_of(position, frequency_ptr + pair, mask)
    x = tl.load(x_ptr + c, mask=mask, other=0.0)
    other = tl.load(x_ptr + partner, mask=mask, other=0.0)
    sine = tl.where(second, tl.sin(angle), -tl.sin(angle))
    return magnitude * (x * tl.cos(angle) + other * sine)


@triton.jit
def keep_latent(
    x_ptr, span_ptr, before, frequency_ptr, weight_ptr, rank, rope_dim, magnitude, eps, KV: tl.constexpr,
    INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write rows of x (T, rank + rope_dim) to the caches of their spans: the norm of l, and k turned.

    Grid: (a span's rows, spans); BLOCK >= rank + rope_dim.
    """
    start, first, rows = rows_of(span_ptr, tl.program_id(1))
    if tl.program_id(0) >= rows:
        return
    kept = rank + rope_dim
    key_ptr, _, _ = keys_of(span_ptr, tl.program_id(1), before, KV)
    position = start + tl.program_id(0)
    x_ptr += (first + tl.program_id(0)).to(tl.int64) * kept
    c = tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + c, mask=c < rank, other=0.0)
    _, scale = moments(x, c < rank, rank, eps, False)
    x *= scale * tl.load(weight_ptr + c, mask=c < rank, other=0.0)
    behind = (c >= rank) & (c < kept)
    k = _turned(
        x_ptr + rank, tl.where(behind, c - rank, 0), behind, rope_dim, position, frequency_ptr, magnitude,
        INTERLEAVED,
    )  # fmt: skip
    x = tl.where(behind, k, x)
    row_ptr = key_ptr + position.to(tl.int64) * row_size(kept, KV)
    store_row(row_ptr, x, c, tl.full((1, 1), 1, tl.int1), kept, KV, 1, BLOCK)


@triton.jit
def turn_queries(
    q_ptr, out_ptr, span_ptr, frequency_ptr, n_heads, query_dim, rope_dim, magnitude,
    INTERLEAVED: tl.constexpr, BH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (T, n_heads, rope_dim): the last numbers of heads of q (T, n_heads, query_dim), turned.

    Grid: (a span's rows, n_heads / BH, spans).
    """
    start, first, rows = rows_of(span_ptr, tl.program_id(2))
    if tl.program_id(0) >= rows:
        return
    token = (first + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1) * BH + tl.arange(0, BH)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    mask = (head < n_heads) & (c < rope_dim)
    row = token * n_heads + head
    y = _turned(
        q_ptr + row * query_dim + (query_dim - rope_dim), c, mask, rope_dim, start + tl.program_id(0),
        frequency_ptr, magnitude, INTERLEAVED,
    )  # fmt: skip
    tl.store(out_ptr + row * rope_dim + c, y, mask=mask)


@triton.jit
def head_products(
    x_ptr, x_stride, code_ptr, high_ptr, scale_ptr, super_ptr, out_ptr, tokens, n_heads, n_rows, cols,
    BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """out (T, n_heads, n_rows): each head's own matrix (n_rows, cols) times its numbers of x.

    Those are the first `cols` of every x_stride. Matrices lie one above the other. Grid: (T / BM,
    n_rows / BR, n_heads). EVEN: BR divides n_rows, and BC cols.
    """
    head = tl.program_id(2)
    t = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BR + tl.arange(0, BR)
    row = t.to(tl.int64)[:, None] * n_heads + head
    acc = tl.zeros((BM, BR), tl.float32)
    for start in range(0, cols, BC):
        c = start + tl.arange(0, BC)[None, :]
        x = tl.load(x_ptr + row * x_stride + c, mask=(t < tokens)[:, None] & (c < cols), other=0.0)
        w = weights(
            code_ptr, high_ptr, scale_ptr, super_ptr, head * n_rows + n, n < n_rows, start, cols, BITS,
            SCALES, BR, BC, W, K, EVEN,
        )  # fmt: skip
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    mask = (t < tokens)[:, None] & (n < n_rows)[None, :]
    tl.store(out_ptr + row * n_rows + n[None, :], acc, mask=mask)


@triton.jit
def attend_latent(
    q_ptr, turned_ptr, span_ptr, before, out_ptr, top_ptr, sum_ptr, tokens, n_heads, rank, rope_dim, scale,
    splits, KV: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, PIECES: tl.constexpr, BL: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Causal attention of q (T, heads, rank) and their turned parts (T, heads, rope_dim).

    As `attend`, whose one head of keys and values this has: out is (splits, T, heads, rank). Where shared
    memory is small, vectors are multiplied in several pieces, and each program gives one piece of out.
    PIECES BL >= rank, BD >= rope_dim. Grid: (a span's T heads / BM, spans splits, PIECES).
    """
    span = tl.program_id(1) // splits
    split = tl.program_id(1) % splits
    start, first, rows = rows_of(span_ptr, span)
    first_token = (tl.program_id(0) * BM) // n_heads
    if first_token >= rows:
        return
    kept = rank + rope_dim
    key_ptr, _, _ = keys_of(span_ptr, span, before, KV)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    token = r // n_heads  # of the span
    row = (first * n_heads + r).to(tl.int64)
    row_mask = token < rows
    d = tl.arange(0, BD)[None, :]
    own = tl.program_id(2) * BL + tl.arange(0, BL)[None, :]
    q_rows = q_ptr + row[:, None] * rank
    q = tl.load(q_rows + own, mask=row_mask[:, None] & (own < rank), other=0.0) * scale
    turned_at = row[:, None] * rope_dim + d
    turned = tl.load(turned_ptr + turned_at, mask=row_mask[:, None] & (d < rope_dim), other=0.0) * scale

    position = start + token
    last_token = tl.minimum((tl.program_id(0) * BM + BM - 1) // n_heads, rows - 1)
    high = (start + last_token) // BS + 1
    share = tl.cdiv(high, splits)
    low = split * share
    high = tl.minimum(low + share, high)

    size = row_size(kept, KV)
    top = tl.full((BM,), -1e30, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BL), tl.float32)
    for block in range(low, high):
        s = block * BS + tl.arange(0, BS)
        seen = (s <= start + last_token)[:, None]
        row_ptr = key_ptr + s.to(tl.int64)[:, None] * size
        scores = dot(turned, tl.trans(load_row(row_ptr, rank + d, seen & (d < rope_dim), kept, KV)))
        latent = load_row(row_ptr, own, seen & (own < rank), kept, KV)
        if PIECES == 1:
            scores += dot(q, tl.trans(latent))
        else:
            for piece in range(PIECES):
                c = piece * BL + tl.arange(0, BL)[None, :]
                part = tl.load(q_rows + c, mask=row_mask[:, None] & (c < rank), other=0.0) * scale
                scores += dot(part, tl.trans(load_row(row_ptr, c, seen & (c < rank), kept, KV)))
        visible = s[None, :] <= position[:, None]
        scores = tl.where(visible, scores, -1e30)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        p = tl.where(visible, tl.exp2(scores - new_top[:, None]), 0.0)
        shrink = tl.exp2(top - new_top)
        acc = acc * shrink[:, None] + dot(p, latent)
        total = total * shrink + tl.sum(p, axis=1)
        top = new_top

    acc = acc / tl.maximum(total, 1e-30)[:, None]
    offset = split.to(tl.int64) * tokens * n_heads
    at = (offset + row)[:, None] * rank + own
    tl.store(out_ptr + at, acc, mask=row_mask[:, None] & (own < rank))
    tl.store(top_ptr + offset + row, top, mask=row_mask)
    tl.store(sum_ptr + offset + row, total, mask=row_mask)
