"""``y = h W``, W (neurons, D) being stored by neuron, in two passes, so that the order of sums is fixed."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.tiles import scales, tile


@triton.jit
def sum_neurons(
    h_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, part_ptr, n_rows, cols, rows_per_split,
    BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, SKIP: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """part (T, splits, cols): the sums over each split's neurons. Grid: (cols / BC, splits, T).

    SKIP: rows of neurons that are zero are not read. EVEN: cols is a multiple of BC and n_rows of
    rows_per_split, which is one of BR.
    """
    NC: tl.constexpr = BC // (W * K)
    ALL: tl.constexpr = EVEN and not SKIP
    start = tl.program_id(0) * BC
    split = tl.program_id(1)
    token = tl.program_id(2).to(tl.int64)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    c = start + tl.arange(0, NC)[None, :, None, None] * (W * K)
    if BITS == 6:
        c += tl.arange(0, 2)[None, None, :, None] * 16
    acc = tl.zeros((BR, NC, K, W), tl.float32)
    added = tl.zeros((BR, NC, 1, 1), tl.float32)
    for row in range(first, last, BR):
        rows = row + tl.arange(0, BR)
        mask = rows < last
        h = tl.load(h_ptr + token * n_rows + rows, mask=mask, other=0.0)
        if SKIP:
            mask = mask & (h != 0.0)
        q = tile(code_ptr, high_ptr, rows, mask, start, cols, BITS, SCALES, BC, W, K, ALL)
        rows = rows[:, None, None, None]
        mask = mask[:, None, None, None]
        factor = h[:, None, None, None]
        if BITS != 0:
            scale, least = scales(
                scale_ptr, super_ptr, rows.to(tl.int64), c, cols, mask & (c < cols), SCALES, ALL
            )
            if SCALES == 2 or SCALES == 3:  # with minima
                added += factor * least
            factor = factor * scale
        if BITS == 6:
            factor = tl.reshape(tl.broadcast_to(factor, (BR, NC, 2, K // 2)), (BR, NC, K, 1))
        acc += q * factor
    y = tl.reshape(tl.sum(acc + added, axis=0), (BC,))
    c = start + tl.arange(0, BC)
    tl.store(part_ptr + (token * tl.num_programs(1) + split) * cols + c, y, mask=c < cols)


@triton.jit
def sum_splits(
    part_ptr, bias_ptr, out_ptr, splits, cols, HAS_BIAS: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """out (T, cols) = the sum of part (T, splits, cols) + b, or += with ADD. Grid: (cols / BLOCK, T)."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64)
    mask = c < cols
    y = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        y += tl.load(part_ptr + (token * splits + split) * cols + c, mask=mask, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + c, mask=mask, other=0.0)
    if ADD:
        y += tl.load(out_ptr + token * cols + c, mask=mask, other=0.0)
    tl.store(out_ptr + token * cols + c, y, mask=mask)
