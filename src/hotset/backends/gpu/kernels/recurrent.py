"""Layers with a recurrent state: the convolution before it, and a walk along a span's rows.

The kernels find the spans by a table of `WALK` numbers (int64) a span: the address of the state before its
first row, 0 where that is zero; the address to write the state after its last row to, maybe the same; the
number of its first row in the call, and its rows. A layer's part of a state is `offset` numbers on: sums
(value heads, key_dim, value_dim), then what the convolution reaches back to (kernel - 1, channels). As with
`hotset.backends.gpu.kernels.attention`, what is launched depends on no sequence.
"""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.activation import softplus
from hotset.backends.gpu.kernels.norm import moments

WALK = 4
"""Numbers of a span in the table."""

_WALK = tl.constexpr(WALK)


@triton.jit
def _state_of(walk_ptr, span, offset):
    """Where a span's state is read, 1 if that is to be read and 0 if it is zero, and where it is written."""
    at = walk_ptr + span * _WALK
    known = tl.where(tl.load(at) != 0, 1, 0)
    read_ptr = tl.load(at).to(tl.pointer_type(tl.float32)) + offset
    return read_ptr, known, tl.load(at + 1).to(tl.pointer_type(tl.float32)) + offset


@triton.jit
def _rows_of(walk_ptr, span):
    """The number of a span's first row, and its rows."""
    at = walk_ptr + span * _WALK
    return tl.load(at + 2), tl.load(at + 3).to(tl.int32)


@triton.jit
def _inputs(
    x_ptr, x_stride, read_ptr, known, first, r, c, mask, channels, REACH: tl.constexpr, GATED: tl.constexpr
):
    """What is convolved, of rows r of a span, those before its first from the state, and channels c."""
    before = (r < 0) & (r >= -REACH * known) & mask
    x = tl.load(read_ptr + (r + REACH) * channels + c, mask=before, other=0.0)
    here = (r >= 0) & mask
    x_ptr += (first + r) * x_stride + c
    if GATED:
        own = tl.load(x_ptr, mask=here, other=0.0) * tl.load(x_ptr + 2 * channels, mask=here, other=0.0)
    else:
        own = tl.load(x_ptr, mask=here, other=0.0)
    return tl.where(here, own, x)


@triton.jit
def convolve(
    x_ptr, x_stride, walk_ptr, offset, weight_ptr, bias_ptr, out_ptr, channels, KERNEL: tl.constexpr,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """out (T, channels) = silu(conv(x) + bias), causal, of each channel by itself; and the state.

    Weights are (KERNEL, channels), the newest row's last. Rows of x are x_stride apart. GATED: they are b, c
    and y (channels each), and out is ``c conv(b y)``. Grid: (channels / BC, spans); BACK >= KERNEL - 1.
    """
    first, rows = _rows_of(walk_ptr, tl.program_id(1))
    if rows == 0:
        return
    read_ptr, known, write_ptr = _state_of(walk_ptr, tl.program_id(1), offset)
    c = tl.program_id(0) * BC + tl.arange(0, BC)[None, :]
    mask = c < channels
    REACH: tl.constexpr = KERNEL - 1
    for start in range(0, rows, BT):
        r = start + tl.arange(0, BT)[:, None]
        inside = mask & (r < rows)
        y = tl.zeros((BT, BC), tl.float32)
        for j in tl.static_range(KERNEL):
            x = _inputs(
                x_ptr, x_stride, read_ptr, known, first, r + (j - REACH), c, inside, channels, REACH, GATED
            )
            y += x * tl.load(weight_ptr + j * channels + c, mask=mask, other=0.0)
        if GATED:
            y *= tl.load(x_ptr + (first + r) * x_stride + channels + c, mask=inside, other=0.0)
        else:
            if HAS_BIAS:
                y += tl.load(bias_ptr + c, mask=mask, other=0.0)
            y *= tl.sigmoid(y)
        tl.store(out_ptr + (first + r) * channels + c, y, mask=inside)
    i = tl.arange(0, BACK)[:, None]
    mask = mask & (i < REACH)
    x = _inputs(x_ptr, x_stride, read_ptr, known, first, rows - REACH + i, c, mask, channels, REACH, GATED)
    tl.debug_barrier()  # all has been read, where it is written to the same place
    tl.store(write_ptr + i * channels + c, x, mask=mask)


@triton.jit
def _of_length_one(x):
    return x / tl.sqrt(tl.sum(x * x, axis=0) + 1e-6)


@triton.jit
def walk_delta_net(
    u_ptr, gate_ptr, gate_stride, walk_ptr, offset, dt_bias_ptr, decay_ptr, out_ptr, n_key_heads, n_heads,
    head_dim, scale, TILED: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out (T, heads, d): the gated delta net's walk; see `hotset.backends.contract.DeltaNetSpec`.

    u (T, channels) is queries, keys (n_key_heads, d) and values (n_heads, d); gates, gate_stride apart, are
    beta and alpha (n_heads each). Queries are multiplied by `scale`. A program has BV columns of a head's
    sums. Grid: (n_heads, d / BV, spans); BK >= d.
    """
    first, rows = _rows_of(walk_ptr, tl.program_id(2))
    if rows == 0:
        return
    read_ptr, known, write_ptr = _state_of(walk_ptr, tl.program_id(2), offset)
    head = tl.program_id(0)
    key_head = head % n_key_heads if TILED else head // (n_heads // n_key_heads)
    k = tl.arange(0, BK)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    k_mask, v_mask = k < head_dim, v < head_dim
    at = (head * head_dim + k[:, None]) * head_dim + v[None, :]
    mask = k_mask[:, None] & v_mask[None, :]
    sums = tl.load(read_ptr + at, mask=mask & (k < known * head_dim)[:, None], other=0.0)
    dt_bias, decay = tl.load(dt_bias_ptr + head), tl.load(decay_ptr + head)
    channels = (2 * n_key_heads + n_heads) * head_dim
    for r in range(rows):
        row_ptr = u_ptr + (first + r) * channels
        query = tl.load(row_ptr + key_head * head_dim + k, mask=k_mask, other=0.0)
        key = tl.load(row_ptr + (n_key_heads + key_head) * head_dim + k, mask=k_mask, other=0.0)
        value = tl.load(row_ptr + (2 * n_key_heads + head) * head_dim + v, mask=v_mask, other=0.0)
        query, key = _of_length_one(query) * scale, _of_length_one(key)
        gates = gate_ptr + (first + r) * gate_stride + head
        beta, alpha = tl.sigmoid(tl.load(gates)), tl.load(gates + n_heads)
        sums *= tl.exp(decay * softplus(alpha + dt_bias))
        error = beta * (value - tl.sum(sums * key[:, None], axis=0))
        sums += key[:, None] * error[None, :]
        y = tl.sum(sums * query[:, None], axis=0)
        tl.store(out_ptr + ((first + r) * n_heads + head) * head_dim + v, y, mask=v_mask)
    tl.debug_barrier()
    tl.store(write_ptr + at, sums, mask=mask)


@triton.jit
def walk_mamba(
    u_ptr, step_ptr, step_stride, walk_ptr, offset, dt_bias_ptr, decay_ptr, skip_ptr, out_ptr, n_groups,
    n_heads, key_dim, value_dim, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out (T, heads, value_dim): Mamba-2's walk; see `hotset.backends.contract.MambaSpec`.

    u (T, channels) is values (n_heads, value_dim), keys and queries (n_groups, key_dim); steps, step_stride
    apart, are (n_heads). A program has BV columns of a head's sums. Grid: (n_heads, value_dim / BV, spans);
    BK >= key_dim.
    """
    first, rows = _rows_of(walk_ptr, tl.program_id(2))
    if rows == 0:
        return
    read_ptr, known, write_ptr = _state_of(walk_ptr, tl.program_id(2), offset)
    head = tl.program_id(0)
    group = head // (n_heads // n_groups)
    k = tl.arange(0, BK)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    k_mask, v_mask = k < key_dim, v < value_dim
    at = (head * key_dim + k[:, None]) * value_dim + v[None, :]
    mask = k_mask[:, None] & v_mask[None, :]
    sums = tl.load(read_ptr + at, mask=mask & (k < known * key_dim)[:, None], other=0.0)
    dt_bias, decay = tl.load(dt_bias_ptr + head), tl.load(decay_ptr + head)
    skip = tl.load(skip_ptr + head)
    values = n_heads * value_dim
    channels = values + 2 * n_groups * key_dim
    for r in range(rows):
        row_ptr = u_ptr + (first + r) * channels
        value = tl.load(row_ptr + head * value_dim + v, mask=v_mask, other=0.0)
        key = tl.load(row_ptr + values + group * key_dim + k, mask=k_mask, other=0.0)
        query = tl.load(row_ptr + values + (n_groups + group) * key_dim + k, mask=k_mask, other=0.0)
        step = softplus(tl.load(step_ptr + (first + r) * step_stride + head) + dt_bias)
        sums = sums * tl.exp(step * decay) + key[:, None] * (step * value)[None, :]
        y = tl.sum(sums * query[:, None], axis=0) + skip * value
        tl.store(out_ptr + (first + r) * values + head * value_dim + v, y, mask=v_mask)
    tl.debug_barrier()
    tl.store(write_ptr + at, sums, mask=mask)


@triton.jit
def gate_and_norm(
    x_ptr, gate_ptr, gate_stride, weight_ptr, weight_stride, bias_ptr, out_ptr, tokens, groups, size, eps,
    GATE_FIRST: tl.constexpr, LAYER: tl.constexpr, HAS_BIAS: tl.constexpr, BT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out = norm(x) silu(gate), or with GATE_FIRST norm(x silu(gate)), of groups (T, groups, size).

    Gates' rows are gate_stride apart, groups' weights weight_stride. Grid: (T groups / BT,); BLOCK >= size.
    """
    row = tl.program_id(0) * BT + tl.arange(0, BT)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    mask = (row < tokens * groups) & (c < size)
    token, group = row // groups, row % groups
    at = row.to(tl.int64) * size + c
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    gate_ptr += token.to(tl.int64) * gate_stride + group * size + c
    gate = tl.load(gate_ptr, mask=mask, other=0.0)
    gate *= tl.sigmoid(gate)
    if GATE_FIRST:
        x *= gate
    mean, scale = moments(x, mask, size, eps, LAYER)
    weight_at = group * weight_stride + c
    y = (x - mean) * scale * tl.load(weight_ptr + weight_at, mask=mask, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + weight_at, mask=mask, other=0.0)
    if not GATE_FIRST:
        y *= gate
    tl.store(out_ptr + at, y, mask=mask)
