"""``y = h W``, W (neurons, D) being stored by neuron, in two passes, so that the order of sums is fixed."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.tiles import codes, scales


@triton.jit
def sum_neurons(
    h_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, part_ptr, n_rows, cols, rows_per_split,
    KIND: tl.constexpr, SKIP: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """part (T, splits, cols): the sums over each split's neurons. Grid: (cols / BC, splits, T).

    SKIP: rows of neurons that are zero are not read. EVEN: cols is a multiple of BC and n_rows of
    rows_per_split, which is one of BR.
    """
    CW: tl.constexpr = 16 if KIND == 8 else 32
    NC: tl.constexpr = BC // CW
    start = tl.program_id(0) * BC
    split = tl.program_id(1)
    token = tl.program_id(2).to(tl.int64)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    acc = tl.zeros((BR, NC, CW), tl.float32)
    least_acc = tl.zeros((BR, NC), tl.float32)
    for row in range(first, last, BR):
        rows = row + tl.arange(0, BR)
        mask = rows < last
        h = tl.load(h_ptr + token * n_rows + rows, mask=mask, other=0.0)
        if SKIP:
            mask = mask & (h != 0.0)
        q = codes(code_ptr, high_ptr, rows, mask, start, cols, KIND, BR, BC, EVEN and not SKIP)
        q = tl.reshape(q, (BR, NC, CW))
        if KIND == 0:  # FLOAT
            acc += q * h[:, None, None]
        else:
            scale, least = scales(
                scale_ptr, super_ptr, rows, mask, start, cols, KIND, BR, BC, CW, EVEN and not SKIP
            )
            acc += q * (scale * h[:, None])[:, :, None]
            if KIND == 3 or KIND == 4 or KIND == 6 or KIND == 7:  # with minima
                least_acc += least * h[:, None]
    y = tl.reshape(tl.sum(acc + least_acc[:, :, None], axis=0), (BC,))
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
