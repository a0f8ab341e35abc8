"""``y = h W``, W (neurons, D) being stored by neuron, in two passes, so that the order of sums is fixed."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.tiles import chunks, codes, load, masked_fields, scales, zero_point


@triton.jit
def sum_neurons(
    h_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, part_ptr, n_rows, cols,
    BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, SKIP: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """part (splits, cols): the sums over each split's neurons. Grid: (cols / BC, splits).

    Neurons are dealt to the splits BR at a time, as the hottest may stand together. SKIP: rows of neurons
    that are zero are not read. EVEN: cols is a multiple of BC and n_rows of splits times BR.
    """
    NC: tl.constexpr = BC // (W * K)
    start = tl.program_id(0) * BC
    first, step = tl.program_id(1) * BR, tl.num_programs(1) * BR
    acc = tl.zeros((BR, NC, K, W), tl.float32)
    added = tl.zeros((BR, NC, 1, 1), tl.float32)
    if SKIP:
        # 16 steps at a time: a bit for each of those in which a neuron fires, of which two are taken at once.
        for base in range(first, n_rows, 16 * step):
            left = _firing_steps(h_ptr, base, step, n_rows, BR)
            while left != 0:
                row = base + _lowest(left) * step
                left &= left - 1
                next_row = tl.where(left != 0, base + _lowest(left) * step, n_rows)
                left &= left - 1
                acc, added = _add_rows(
                    h_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, row, start, n_rows, cols, acc, added,
                    BITS, SCALES, W, K, SKIP, BR, BC, False,
                )  # fmt: skip
                acc, added = _add_rows(
                    h_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, next_row, start, n_rows, cols, acc,
                    added, BITS, SCALES, W, K, SKIP, BR, BC, False,
                )  # fmt: skip
    else:
        for row in tl.range(first, n_rows, step, loop_unroll_factor=4):
            acc, added = _add_rows(
                h_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, row, start, n_rows, cols, acc, added, BITS,
                SCALES, W, K, SKIP, BR, BC, EVEN,
            )  # fmt: skip
    if BITS != 0 and BITS != 6:
        place = tl.arange(0, K)[None, None, :, None] % (16 // BITS) * BITS
        acc *= ((176 - place) << 23).to(tl.float32, bitcast=True)  # 2^(49 - place)
    y = tl.reshape(tl.sum(acc + added, axis=0), (BC,))
    c = start + tl.arange(0, BC)
    tl.store(part_ptr + tl.program_id(1) * cols + c, y, mask=c < cols)


@triton.jit
def _firing_steps(h_ptr, base, step, n_rows, BR: tl.constexpr):
    """Bit i: whether any of the BR neurons from ``base + i step`` on is not zero; 16 bits."""
    i = tl.arange(0, 16)
    rows = base + i[:, None] * step + tl.arange(0, BR)[None, :]
    largest = tl.max(tl.abs(tl.load(h_ptr + rows, mask=rows < n_rows, other=0.0)), axis=1)
    return tl.sum(tl.where(largest > 0.0, 1 << i, 0), axis=0)


@triton.jit
def _lowest(bits):
    """The number of the lowest bit that is set, of up to 16: the exponent of what is left of them alone."""
    return ((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _add_rows(
    h_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, row, start, n_rows, cols, acc, added,
    BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, SKIP: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Add the rows of BR neurons to acc (BR, NC, K, W) and added (BR, NC, 1, 1).

    Codes of up to 8 bits are added as they stand in their words: times 2^(place - 49).
    """
    NC: tl.constexpr = BC // (W * K)
    ALL: tl.constexpr = EVEN and not SKIP
    ZERO: tl.constexpr = zero_point(BITS, SCALES)
    c = start + tl.arange(0, NC)[None, :, None, None] * (W * K)
    k = tl.arange(0, K)[None, None, :, None]
    if BITS == 6:
        c += tl.arange(0, 2)[None, None, :, None] * 16
    rows = row + tl.arange(0, BR)[:, None, None, None]
    mask = rows < n_rows
    factor = load(h_ptr + rows, mask, EVEN)
    if SKIP:
        mask = mask & (factor != 0.0)
    rows = rows.to(tl.int64)
    words, high = chunks(code_ptr, high_ptr, rows, mask, start, cols, BITS, BC, W, K, ALL)
    if BITS == 0:
        acc += words.to(tl.float32) * factor
    else:
        scale, least = scales(scale_ptr, super_ptr, rows, c, cols, mask & (c < cols), SCALES, ALL)
        if BITS == 6:
            scale = tl.reshape(tl.broadcast_to(scale * 4194304.0, (BR, NC, 2, K // 2)), (BR, NC, K, 1))
            acc += codes(words, high, k, BITS, SCALES) * (factor * scale)  # 2^22
            if SCALES == 5:  # with minima
                least = tl.reshape(tl.broadcast_to(least, (BR, NC, 2, K // 2)), (BR, NC, K, 1))
                acc += factor * least
        else:
            acc += masked_fields(words, k, BITS) * (factor * scale * 1.2676506002282294e30)  # 2^100
            if SCALES == 1:  # zero points are added up apart
                added -= factor * scale * ZERO
            else:  # with minima
                added += factor * least
    return acc, added


@triton.jit
def sum_splits(
    part_ptr, bias_ptr, out_ptr, splits, cols, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (cols,) = the sum of part (splits, cols) + b, or += with ADD. Grid: (cols / BLOCK,)."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)[:, None]
    mask = c < cols
    part = tl.load(part_ptr + split * cols + c[None, :], mask=mask[None, :] & (split < splits), other=0.0)
    y = tl.sum(part, axis=0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + c, mask=mask, other=0.0)
    if ADD:
        y += tl.load(out_ptr + c, mask=mask, other=0.0)
    tl.store(out_ptr + c, y, mask=mask)
