"""Tiles of a laid-out matrix. BITS and SCALES are those of `hotset.backends.gpu.layouts`.

Whatever is loaded is loaded in the shape in which it is used, its last axis being one thread's: then no
number moves between threads.
"""

import triton
import triton.language as tl


@triton.jit
def load(pointers, mask, EVEN: tl.constexpr):
    """Load, with zeros where `mask` says no; `EVEN`: it says yes everywhere."""
    if EVEN:
        x = tl.load(pointers)
    else:
        x = tl.load(pointers, mask=mask, other=0)
    return x


@triton.jit
def field(words, shift, WIDTH: tl.constexpr, zero):
    """Bits ``shift .. shift + WIDTH - 1`` (below bit 16) of words, less `zero`, times 2^-22: float32, exact.

    The masked bits, where they stand, are taken as a float, a subnormal one that is exactly their number
    times 2^-149. So a mask and a multiplication do, without a shift and a conversion, which GPUs do at a
    fraction of their speed. `shift` is known when compiling.
    """
    bits = words & (((1 << WIDTH) - 1) << shift)
    scale = ((254 - shift) << 23).to(tl.float32, bitcast=True)  # 2^(127 - shift)
    return bits.to(tl.float32, bitcast=True) * scale - zero * 2.384185791015625e-07


@triton.jit
def zero_point(BITS: tl.constexpr, SCALES: tl.constexpr):
    """What is taken off codes, all fields of an unsigned number."""
    zero: tl.constexpr = 0.0
    if BITS == 6:
        zero = 32.0
    elif BITS == 2:
        zero = 1.5
    elif SCALES == 1:
        zero = 128.0 if BITS == 8 else 8.0
    return zero


@triton.jit
def codes(words, high, k, BITS: tl.constexpr, SCALES: tl.constexpr):
    """Codes, zero point off, of fields k of words and of their upper bits, times 2^-22: float32."""
    if BITS == 8:
        q = field(words >> (k // 2 * 16), k % 2 * 8, 8, 128.0 if SCALES == 1 else 0.0)
    elif BITS == 2:
        q = field(words >> (k // 8 * 16), k % 8 * 2, 2, 1.5)
    else:
        q = field(words >> (k // 4 * 16), k % 4 * 4, 4, 8.0 if SCALES == 1 else 0.0)
    if BITS == 6:
        q += 16.0 * field(high.to(tl.int32), k * 2, 2, 2.0)
    return q


@triton.jit
def scales(scale_ptr, super_ptr, rows, c, cols, mask, SCALES: tl.constexpr, EVEN: tl.constexpr):
    """What the codes of `rows` (int64) and columns c are multiplied by, and what is added.

    Without minima, nothing is to be added, and the scale is given twice.
    """
    if SCALES == 5:  # SUPER_MINIMA_16
        at = (rows * (cols // 16) + c // 16) * 2
        super_at = (rows * (cols // 256) + c // 256) * 2
        scale = load(super_ptr + super_at, mask, EVEN).to(tl.float32)
        scale *= load(scale_ptr + at, mask, EVEN).to(tl.float32)
        least = load(super_ptr + super_at + 1, mask, EVEN).to(tl.float32)
        least *= -load(scale_ptr + at + 1, mask, EVEN).to(tl.float32)
    elif SCALES == 4:  # SUPER_16
        scale = load(super_ptr + (rows * (cols // 256) + c // 256), mask, EVEN).to(tl.float32)
        scale *= load(scale_ptr + (rows * (cols // 16) + c // 16), mask, EVEN).to(tl.float32)
        least = scale
    elif SCALES == 3:  # SUPER
        at = (rows * (cols // 32) + c // 32) * 2
        super_at = (rows * (cols // 256) + c // 256) * 2
        scale = load(super_ptr + super_at, mask, EVEN).to(tl.float32)
        scale *= load(scale_ptr + at, mask, EVEN).to(tl.float32)
        least = load(super_ptr + super_at + 1, mask, EVEN).to(tl.float32)
        least *= -load(scale_ptr + at + 1, mask, EVEN).to(tl.float32)
    elif SCALES == 2:  # MINIMA
        at = (rows * (cols // 32) + c // 32) * 2
        scale = load(scale_ptr + at, mask, EVEN).to(tl.float32)
        least = load(scale_ptr + at + 1, mask, EVEN).to(tl.float32)
    else:  # PLAIN
        scale = load(scale_ptr + (rows * (cols // 32) + c // 32), mask, EVEN).to(tl.float32)
        least = scale
    return scale, least


@triton.jit
def masked_fields(words, k, BITS: tl.constexpr):
    """Fields k of words where they stand, taken as floats: times 2^(place - 149), place below 16. Exact."""
    PER_HALF: tl.constexpr = 16 // BITS
    bits = (words >> (k // PER_HALF * 16)) & (((1 << BITS) - 1) << (k % PER_HALF * BITS))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def chunks(
    code_ptr, high_ptr, rows, row_mask, start, cols, BITS: tl.constexpr, BC: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Words (BR, BC / (W K), 1, W), and those of upper bits, of rows (BR, 1, 1, 1), `start` and on.

    Of floats these are the weights, K being 1. Columns past `cols` and rows that are masked hold anything
    finite. `EVEN`: there are none.
    """
    chunk = start // (W * K) + tl.arange(0, BC // (W * K))[None, :, None, None]
    w = tl.arange(0, W)[None, None, None, :]
    if BITS == 0:
        c = chunk * W + w
        words = load(code_ptr + rows * cols + c, row_mask & (c < cols), EVEN)
        high = words
    else:
        n_chunks = cols // (W * K)
        at = (rows * n_chunks + chunk) * W + w
        mask = row_mask & (chunk < n_chunks)
        words = load(code_ptr + at, mask, EVEN)
        high = words
        if BITS == 6:
            high = load(high_ptr + at, mask, EVEN)
    return words, high


@triton.jit
def weights(
    code_ptr, high_ptr, scale_ptr, super_ptr, rows, row_mask, start, cols, BITS: tl.constexpr,
    SCALES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, W: tl.constexpr, K: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The weights of `rows` (BR,) and columns ``start + 0 .. BC - 1``: (BR, BC) float32, masked ones zero."""
    rows = rows.to(tl.int64)[:, None, None, None]
    mask = row_mask[:, None, None, None]
    words, high = chunks(code_ptr, high_ptr, rows, mask, start, cols, BITS, BC, W, K, EVEN)
    if BITS == 0:
        w = words.to(tl.float32)
    else:
        w = codes(words, high, tl.arange(0, K)[None, None, :, None], BITS, SCALES)
        c = start + tl.arange(0, BC // (W * K))[None, :, None, None] * (W * K)
        if BITS == 6:
            c += tl.arange(0, 2)[None, None, :, None] * 16
            w = tl.reshape(w, (BR, BC // 32, 2, 16))
        scale, least = scales(scale_ptr, super_ptr, rows, c, cols, mask & (c < cols), SCALES, EVEN)
        w *= scale * 4194304.0  # 2^22
        if SCALES == 2 or SCALES == 3 or SCALES == 5:  # with minima
            w += least
    return tl.reshape(w, (BR, BC))
