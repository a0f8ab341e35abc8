"""Attention: heads' norms, RoPE and the cache's writes in one kernel, flash attention over split keys.

The rows of a call belong to spans, each of a sequence with keys and values of its own. The kernels find them
by a table of `SPAN` numbers (int64) a span: the addresses of its keys and values, the capacity, the position
of its first row, the number of that row in the call, and its rows. So what is launched depends on no
sequence, and a recorded launch is good for any. A layer's keys (kv heads, capacity, d), and its values, begin
`before` capacities behind those addresses.

Keys and values are floats or, of type int8, a row of d codes and, behind them, a float16 scale for each 32.
"""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.activation import softplus
from hotset.backends.gpu.kernels.norm import moments
from hotset.backends.gpu.kernels.quantise import store_codes

SPAN = 6
"""Numbers of a span in the table."""

_SPAN = tl.constexpr(SPAN)


@triton.jit
def row_size(head_dim, KV: tl.constexpr):
    """Numbers of type KV that a row of keys or values takes."""
    return head_dim // 32 * 34 if KV == tl.int8 else head_dim


@triton.jit
def keys_of(span_ptr, span, before, KV: tl.constexpr):
    """Where a span's keys and values of a layer begin, and for how many positions."""
    at = span_ptr + span * _SPAN
    capacity = tl.load(at + 2)
    skipped = before * capacity
    key_ptr = tl.load(at).to(tl.pointer_type(KV)) + skipped
    value_ptr = tl.load(at + 1).to(tl.pointer_type(KV)) + skipped
    if KV != tl.int8:
        key_ptr, value_ptr = tl.multiple_of(key_ptr, 16), tl.multiple_of(value_ptr, 16)
    return key_ptr, value_ptr, capacity


@triton.jit
def _scales_of(row_ptr, head_dim):
    """Where the scales of rows of codes are."""
    return (row_ptr + head_dim).to(tl.int64).to(tl.pointer_type(tl.float16))


@triton.jit
def load_row(row_ptr, d, mask, head_dim, KV: tl.constexpr):
    """Numbers d of the rows of keys or values."""
    x = tl.load(row_ptr + d, mask=mask, other=0)
    if KV == tl.int8:
        x = x.to(tl.float16) * tl.load(_scales_of(row_ptr, head_dim) + d // 32, mask=mask, other=0.0)
    return x


@triton.jit
def store_row(
    row_ptr, x, c, mask, head_dim, KV: tl.constexpr, BH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write x (BH, BLOCK), zeros after head_dim, to rows of keys or values."""
    if KV == tl.int8:
        groups = tl.reshape(x, (BH, BLOCK // 32, 32))
        scale = (tl.max(tl.abs(groups), axis=2) / 127.0).to(tl.float16)
        by = tl.where(scale > 0.0, 1.0 / tl.maximum(scale.to(tl.float32), 1e-30), 0.0)
        codes = tl.floor(groups * by[:, :, None] + 0.5)
        codes = tl.reshape(tl.minimum(tl.maximum(codes, -127.0), 127.0), (BH, BLOCK))
        tl.store(row_ptr + c, codes.to(tl.int8), mask=mask & (c < head_dim))
        g = tl.arange(0, BLOCK // 32)[None, :]
        tl.store(_scales_of(row_ptr, head_dim) + g, scale, mask=mask & (g * 32 < head_dim))
    else:
        tl.store(row_ptr + c, x.to(KV), mask=mask & (c < head_dim))


@triton.jit
def rows_of(span_ptr, span):
    """A span's first position, the number of its first row, and its rows."""
    at = span_ptr + span * _SPAN
    return tl.load(at + 3).to(tl.int32), tl.load(at + 4).to(tl.int32), tl.load(at + 5).to(tl.int32)


@triton.jit
def angle_of(position, frequency_ptr, mask):
    """By how much RoPE turns at a position; frequencies, float64, are in turns per position."""
    # In double precision: a long context's angle has more turns than a float has digits.
    turns = position.to(tl.float64) * tl.load(frequency_ptr, mask=mask, other=0.0)
    return ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)


@triton.jit
def prepare_heads(
    qkv_ptr, q_ptr, span_ptr, before, frequency_ptr, q_weight_ptr, q_bias_ptr, k_weight_ptr, k_bias_ptr,
    v_weight_ptr, n_heads, n_kv_heads, head_dim, rope_dim, magnitude, long_from, growth, growth_context, eps,
    KV: tl.constexpr, PARTS: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, V_NORM: tl.constexpr,
    LAYER: tl.constexpr, Q_BIAS: tl.constexpr, K_BIAS: tl.constexpr, ROPE: tl.constexpr,
    INTERLEAVED: tl.constexpr, LONG: tl.constexpr, GROWS: tl.constexpr, GATED: tl.constexpr,
    BH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Norm and rotate the heads of qkv (T, [q | k | v]); write q (T, heads, d), and k and v to the caches.

    Those are of type KV. PARTS of [q | k | v] are there: with two, values are the keys as they are in qkv;
    with one, no keys or values are written. Frequencies (rope_dim / 2,) float64 are in turns per position.
    LONG: behind them are those of sequences with room for more than `long_from` positions. GROWS: queries are
    multiplied as `hotset.core.heads.QueryGrowth` says. GATED: each query is followed by its gate, of as many
    numbers, which this leaves. Grid: (a span's rows, (n_heads and twice the kv heads written) / BH, spans).
    """
    written = n_kv_heads if PARTS > 1 else 0
    start, first, rows = rows_of(span_ptr, tl.program_id(2))
    if tl.program_id(0) >= rows:
        return
    key_ptr, value_ptr, capacity = keys_of(span_ptr, tl.program_id(2), before, KV)
    token = first + tl.program_id(0)
    position = start + tl.program_id(0)
    n_all = n_heads + 2 * written
    head = tl.program_id(1) * BH + tl.arange(0, BH)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    mask = (head < n_all) & (c < head_dim)
    is_query = head < n_heads
    is_value = head >= n_heads + written
    in_row = n_heads * (2 if GATED else 1) + (PARTS - 1) * n_kv_heads
    place = head + (tl.minimum(head, n_heads) if GATED else 0)
    if PARTS == 2:
        place = tl.where(is_value, place - n_kv_heads, place)
    x_ptr = qkv_ptr + (token.to(tl.int64) * in_row + place) * head_dim
    x = tl.load(x_ptr + c, mask=mask, other=0.0)

    half = rope_dim // 2
    if INTERLEAVED:
        partner = c ^ 1
        pair = c // 2
        second = c % 2 == 1
    else:
        partner = tl.where(c < half, c + half, c - half)
        pair = tl.where(c < half, c, c - half)
        second = c >= half
    rotated = (c < rope_dim) & (head < n_heads + written)
    other = tl.load(x_ptr + partner, mask=rotated, other=0.0)
    if Q_NORM or K_NORM or V_NORM:
        mean, scale = moments(x, mask, head_dim, eps, LAYER)
        if Q_NORM:
            normed, normed_other = _norm_pair(
                x, other, mean, scale, q_weight_ptr, q_bias_ptr, c, partner, head_dim, rope_dim, Q_BIAS
            )
            x = tl.where(is_query, normed, x)
            other = tl.where(is_query, normed_other, other)
        if K_NORM:
            normed, normed_other = _norm_pair(
                x, other, mean, scale, k_weight_ptr, k_bias_ptr, c, partner, head_dim, rope_dim, K_BIAS
            )
            x = tl.where(is_query | is_value, x, normed)
            other = tl.where(is_query, other, normed_other)
        if V_NORM:
            weight = tl.load(v_weight_ptr + c, mask=c < head_dim, other=0.0)
            x = tl.where(is_value, (x - mean) * scale * weight, x)
    if LONG:
        frequency_ptr += tl.where(capacity > long_from, half, 0)
    if ROPE:
        angle = angle_of(position, frequency_ptr + pair, c < rope_dim)
        sine = tl.where(second, tl.sin(angle), -tl.sin(angle))
        x = tl.where(rotated, magnitude * (x * tl.cos(angle) + other * sine), x)

    if GROWS:
        steps = (position // growth_context).to(tl.float32)
        x = tl.where(is_query, x * (1.0 + growth * tl.log(1.0 + steps)), x)
    tl.store(q_ptr + (token.to(tl.int64) * n_heads + head) * head_dim + c, x, mask=mask & is_query)
    if PARTS > 1:
        is_key = (head >= n_heads) & (head < n_heads + n_kv_heads)
        size = row_size(head_dim, KV)
        row = (head - n_heads).to(tl.int64) * capacity + position
        store_row(key_ptr + row * size, x, c, is_key, head_dim, KV, BH, BLOCK)
        row = (head - n_heads - n_kv_heads).to(tl.int64) * capacity + position
        store_row(value_ptr + row * size, x, c, is_value & (head < n_all), head_dim, KV, BH, BLOCK)


@triton.jit
def _norm_pair(
    x, other, mean, scale, weight_ptr, bias_ptr, c, partner, head_dim, rope_dim, HAS_BIAS: tl.constexpr
):
    """The norm of heads and, by the same moments, of their numbers' partners."""
    mask = c < head_dim
    rotated = c < rope_dim
    x = (x - mean) * scale * tl.load(weight_ptr + c, mask=mask, other=0.0)
    other = (other - mean) * scale * tl.load(weight_ptr + partner, mask=rotated, other=0.0)
    if HAS_BIAS:
        x += tl.load(bias_ptr + c, mask=mask, other=0.0)
        other += tl.load(bias_ptr + partner, mask=rotated, other=0.0)
    return x, other


@triton.jit
def dot(x, y):
    """x (float32) times y at float32's precision: a half-precision y takes x as the sum of two halves."""
    if y.dtype == tl.float16:
        high = x.to(tl.float16)
        z = tl.dot((x - high.to(tl.float32)).to(tl.float16), y, tl.dot(high, y))
    else:
        z = tl.dot(x, y, input_precision="ieee")
    return z


@triton.jit
def attend(
    q_ptr, span_ptr, before, out_ptr, top_ptr, sum_ptr, sink_ptr, tokens, n_heads, n_kv_heads, head_dim,
    scale, window, soft_cap, splits, KV: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr,
    FLOATS: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Causal attention of q (T, heads, d) over each span's keys, those split among programs.

    A program's BM rows are (token, head of the group) pairs of a span that share a kv head. Written are each
    split's mixture out (splits, T, heads, d), the largest score (base 2) and the sum of weights (splits, T,
    heads). With one split these are the results. Scale and soft_cap include log2(e). CAPPED: scores s become
    ``soft_cap tanh(s / soft_cap)``. SINKS: sinks (heads,) are one more score each, without a value.
    FLOATS: products are of float32, which takes less shared memory than of halves. Grid: (a span's T
    group / BM, kv heads, spans splits).
    """
    group = n_heads // n_kv_heads
    kv_head = tl.program_id(1)
    span = tl.program_id(2) // splits
    split = tl.program_id(2) % splits
    start, first, rows = rows_of(span_ptr, span)
    first_token = (tl.program_id(0) * BM) // group
    if first_token >= rows:
        return
    key_ptr, value_ptr, capacity = keys_of(span_ptr, span, before, KV)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    token = r // group  # of the span
    row = (first + token) * n_heads + kv_head * group + r % group  # of q and out
    row_mask = token < rows
    d = tl.arange(0, BD)
    d_mask = d < head_dim
    at = row.to(tl.int64)[:, None] * head_dim + d[None, :]
    q = tl.load(q_ptr + at, mask=row_mask[:, None] & d_mask[None, :], other=0.0) * scale

    position = start + token
    last_token = tl.minimum((tl.program_id(0) * BM + BM - 1) // group, rows - 1)
    # The blocks of keys that any row sees, and this split's share of them.
    low = tl.maximum(start + first_token + 1 - window, 0) // BS
    high = (start + last_token) // BS + 1
    share = tl.cdiv(high - low, splits)
    low += split * share
    high = tl.minimum(low + share, high)

    size = row_size(head_dim, KV)
    base = kv_head.to(tl.int64) * capacity * size
    top = tl.full((BM,), -1e30, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BD), tl.float32)
    for block in range(low, high):
        s = block * BS + tl.arange(0, BS)
        seen = s <= start + last_token
        rows_at = base + s[:, None] * size
        mask = seen[:, None] & d_mask[None, :]
        k = load_row(key_ptr + rows_at, d[None, :], mask, head_dim, KV)
        visible = (s[None, :] <= position[:, None]) & (s[None, :] > position[:, None] - window)
        if FLOATS:
            k = k.to(tl.float32)
        scores = dot(q, tl.trans(k))
        if CAPPED:
            scores = soft_cap * (2.0 * tl.sigmoid(2.0 * scores / soft_cap) - 1.0)
        scores = tl.where(visible, scores, -1e30)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        p = tl.where(visible, tl.exp2(scores - new_top[:, None]), 0.0)
        shrink = tl.exp2(top - new_top)
        v = load_row(value_ptr + rows_at, d[None, :], mask, head_dim, KV)
        if FLOATS:
            v = v.to(tl.float32)
        acc = acc * shrink[:, None] + dot(p, v)
        total = total * shrink + tl.sum(p, axis=1)
        top = new_top

    if SINKS:  # the first split's
        sink = tl.load(sink_ptr + kv_head * group + r % group) * 1.4426950408889634
        sink = tl.where(split == 0, sink, -1e30)
        new_top = tl.maximum(top, sink)
        shrink = tl.exp2(top - new_top)
        acc *= shrink[:, None]
        total = total * shrink + tl.where(split == 0, tl.exp2(sink - new_top), 0.0)
        top = new_top
    acc = acc / tl.maximum(total, 1e-30)[:, None]
    offset = split.to(tl.int64) * tokens * n_heads
    tl.store(out_ptr + offset * head_dim + at, acc, mask=row_mask[:, None] & d_mask[None, :])
    tl.store(top_ptr + offset + row, top, mask=row_mask)
    tl.store(sum_ptr + offset + row, total, mask=row_mask)


@triton.jit
def merge_splits(
    part_ptr, top_ptr, sum_ptr, span_ptr, out_ptr, code_ptr, tokens, n_heads, head_dim, splits,
    CODES: tl.constexpr, SPLITS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out (T, heads, d) of the spans' rows from every split's part (splits, T, heads, d).

    CODES: of one token, its codes too (`quantise`). Grid: (a span's rows n_heads, spans); SPLITS >= splits.
    """
    _, first, rows = rows_of(span_ptr, tl.program_id(1))
    if tl.program_id(0) >= rows * n_heads:
        return
    row = (first * n_heads + tl.program_id(0)).to(tl.int64)
    all_rows = tokens * n_heads
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, BD)
    top = tl.load(top_ptr + s * all_rows + row, mask=s < splits, other=-1e30)
    total = tl.load(sum_ptr + s * all_rows + row, mask=s < splits, other=0.0)
    weight = total * tl.exp2(top - tl.max(top, axis=0))
    weight = weight / tl.sum(weight, axis=0)
    mask = (s < splits)[:, None] & (d < head_dim)[None, :]
    part = tl.load(part_ptr + (s[:, None] * all_rows + row) * head_dim + d[None, :], mask=mask, other=0.0)
    y = tl.sum(part * weight[:, None], axis=0)
    tl.store(out_ptr + row * head_dim + d, y, mask=d < head_dim)
    if CODES:
        store_codes(y, tl.program_id(0) * head_dim, code_ptr, n_heads * head_dim, BD)


@triton.jit
def gate_heads(
    x_ptr, gate_ptr, gate_stride, n, n_heads, head_dim, BY_NUMBER: tl.constexpr, BLOCK: tl.constexpr
):
    """Multiply heads x (T, heads, d) by their gates, whose rows are gate_stride apart.

    BY_NUMBER: by the sigmoid of each number's own, which follow queries, (heads, 2, d); else by the softplus
    of one for each head. `n` are all numbers. Grid: (n / BLOCK,).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    size = n_heads * head_dim
    head = i % size // head_dim
    gate_ptr += i // size * gate_stride
    if BY_NUMBER:
        gate = tl.load(gate_ptr + (2 * head + 1) * head_dim + i % head_dim, mask=mask, other=0.0)
        factor = tl.sigmoid(gate)
    else:
        factor = softplus(tl.load(gate_ptr + head, mask=mask, other=0.0))
    tl.store(x_ptr + i, tl.load(x_ptr + i, mask=mask, other=0.0) * factor, mask=mask)
