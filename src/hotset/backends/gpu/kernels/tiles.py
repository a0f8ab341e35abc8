"""Tiles of a laid-out matrix (`hotset.backends.gpu.layouts`), as float codes and as scales and minima."""

import triton
import triton.language as tl

# As `layouts.Kind` numbers them.
FLOAT = tl.constexpr(0)
Q8 = tl.constexpr(1)
Q4 = tl.constexpr(2)
Q4_MIN = tl.constexpr(3)
Q4_K = tl.constexpr(4)
Q5 = tl.constexpr(5)
Q5_MIN = tl.constexpr(6)
Q5_K = tl.constexpr(7)
Q6_K = tl.constexpr(8)
Q2 = tl.constexpr(9)


@triton.jit
def load(pointers, mask, EVEN: tl.constexpr):
    """Load, with zeros where `mask` says no; `EVEN`: it says yes everywhere."""
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=mask, other=0)


@triton.jit
def field(words, shift, WIDTH: tl.constexpr):
    """Bits ``shift .. shift + WIDTH - 1`` (below bit 16) of words, as float32.

    The masked bits, where they stand, become the fraction of a float of 2^23: no shift and no conversion,
    both of which GPUs do at a fraction of their speed.
    """
    bits = (words & (((1 << WIDTH) - 1) << shift)) | 0x4B000000
    scale = ((127 - shift) << 23).to(tl.float32, bitcast=True)
    return bits.to(tl.float32, bitcast=True) * scale - 8388608.0 * scale


@triton.jit
def codes(
    code_ptr, high_ptr, rows, row_mask, start, cols, KIND: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Codes, or floats, of `rows` (BR,) and columns ``start + 0 .. BC - 1``: (BR, BC) float32, zero point off.

    Columns past `cols` and rows that are masked hold anything finite. `EVEN`: there are none.
    """
    rows = rows.to(tl.int64)
    if KIND <= 1:  # FLOAT, Q8
        c = start + tl.arange(0, BC)
        mask = row_mask[:, None] & (c < cols)[None, :]
        return load(code_ptr + rows[:, None] * cols + c[None, :], mask, EVEN).to(tl.float32)

    NB: tl.constexpr = BC // 32
    n_blocks = cols // 32
    block = start // 32 + tl.arange(0, NB)
    mask = row_mask[:, None] & (block < n_blocks)[None, :]
    at = rows[:, None] * n_blocks + block[None, :]  # (BR, NB)
    h = tl.arange(0, 2)[None, None, :, None, None]
    j = tl.arange(0, 4)[None, None, None, :, None]
    b = tl.arange(0, 4)[None, None, None, None, :]
    if KIND == 9:  # Q2
        words = load((code_ptr + at[:, :, None] * 2) + tl.arange(0, 2)[None, None, :], mask[:, :, None], EVEN)
        words = words[:, :, :, None, None] >> (b // 2 * 16)
        q = field(words, b % 2 * 8 + j * 2, 2) - 1.5
        return tl.reshape(q, (BR, BC))
    words = load((code_ptr + at[:, :, None] * 4) + tl.arange(0, 4)[None, None, :], mask[:, :, None], EVEN)
    words = words[:, :, None, :, None] >> (b // 2 * 16)
    q = field(words, b % 2 * 8 + h * 4, 4)
    if KIND >= 5 and KIND <= 7:  # Q5, Q5_MIN, Q5_K
        high = load(high_ptr + at, mask, EVEN)[:, :, None, None, None] >> (h * 16)
        q += 16.0 * field(high, j * 4 + b, 1)
    if KIND == 8:  # Q6_K
        high = load((high_ptr + at[:, :, None] * 2) + tl.arange(0, 2)[None, None, :], mask[:, :, None], EVEN)
        high = high[:, :, :, None, None] >> (b // 2 * 16)
        q += 16.0 * field(high, b % 2 * 8 + j * 2, 2) - 32.0
    if KIND == 2:  # Q4
        q -= 8.0
    if KIND == 5:  # Q5
        q -= 16.0
    return tl.reshape(q, (BR, BC))


@triton.jit
def scales(
    scale_ptr, super_ptr, rows, row_mask, start, cols, KIND: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, CW: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What the codes of a tile are multiplied by, and what is added: (BR, BC / CW) each.

    One for every CW columns, 16 or 32; past `cols` and for masked rows, zeros. Not for FLOAT.
    """
    rows = rows.to(tl.int64)[:, None]
    c = start + tl.arange(0, BC // CW)[None, :] * CW
    mask = row_mask[:, None] & (c < cols)
    if KIND == 8:  # Q6_K
        super_scale = load(super_ptr + rows * (cols // 256) + c // 256, mask, EVEN).to(tl.float32)
        scale = load(scale_ptr + rows * (cols // 16) + c // 16, mask, EVEN).to(tl.float32) * super_scale
        return scale, scale
    at = rows * (cols // 32) + c // 32
    if KIND == 3 or KIND == 6:  # Q4_MIN, Q5_MIN
        scale = load(scale_ptr + at * 2, mask, EVEN).to(tl.float32)
        return scale, load(scale_ptr + at * 2 + 1, mask, EVEN).to(tl.float32)
    if KIND == 4 or KIND == 7:  # Q4_K, Q5_K
        super_at = (rows * (cols // 256) + c // 256) * 2
        scale = load(super_ptr + super_at, mask, EVEN).to(tl.float32)
        least = load(super_ptr + super_at + 1, mask, EVEN).to(tl.float32)
        scale *= load(scale_ptr + at * 2, mask, EVEN).to(tl.float32)
        return scale, -least * load(scale_ptr + at * 2 + 1, mask, EVEN).to(tl.float32)
    scale = load(scale_ptr + at, mask, EVEN).to(tl.float32)
    return scale, scale


@triton.jit
def weights(
    code_ptr, high_ptr, scale_ptr, super_ptr, rows, row_mask, start, cols, KIND: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The weights of `rows` (BR,) and columns ``start + 0 .. BC - 1``: (BR, BC) float32, masked ones zero."""
    w = codes(code_ptr, high_ptr, rows, row_mask, start, cols, KIND, BR, BC, EVEN)
    if KIND == 0:  # FLOAT
        return w
    CW: tl.constexpr = 16 if KIND == 8 else 32
    scale, least = scales(scale_ptr, super_ptr, rows, row_mask, start, cols, KIND, BR, BC, CW, EVEN)
    w = tl.reshape(w, (BR, BC // CW, CW)) * scale[:, :, None]
    if KIND == 3 or KIND == 4 or KIND == 6 or KIND == 7:
        w += least[:, :, None]
    return tl.reshape(w, (BR, BC))
