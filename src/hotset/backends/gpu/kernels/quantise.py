"""One token's activations as 8-bit codes, for products in integers with quantised matrices.

As on the CPU, a block of 32 numbers has one scale, its largest magnitude over 127. A token of C numbers is
one array of int32: C / 4 words of codes; C / 32 scales, float32; and the codes' sums over each 16, float32,
from which the matrices' zero points and minima follow. Byte j of a block's word p is column ``8 j + p`` of
the block: the columns that a masked word of a laid-out matrix has.
"""

import triton
import triton.language as tl


@triton.jit
def store_codes(y, start, out_ptr, cols, BLOCK: tl.constexpr):
    """Write the codes of y (BLOCK,), which are columns `start` and on; those past `cols` are zero."""
    NB: tl.constexpr = BLOCK // 32
    y = tl.reshape(y, (NB, 4, 8))
    block = start // 32 + tl.arange(0, NB)
    mask = block < cols // 32
    scale = tl.max(tl.max(tl.abs(y), axis=2), axis=1) / 127.0
    inverse = 1.0 / tl.maximum(scale, 1e-37)  # of zeros anything finite
    q = tl.floor(y * inverse[:, None, None] + 0.5).to(tl.int32)
    j = tl.arange(0, 4)[None, :, None]
    words = tl.sum((q & 255) << (8 * j), axis=1)
    at = block[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(out_ptr + at, words, mask=mask[:, None])
    out_ptr += cols // 4
    tl.store(out_ptr + block, scale.to(tl.int32, bitcast=True), mask=mask)
    sums = tl.sum(tl.reshape(q, (NB, 2, 16)), axis=2).to(tl.float32)
    at = block[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(out_ptr + cols // 32 + at, sums.to(tl.int32, bitcast=True), mask=mask[:, None])


@triton.jit
def quantise(x_ptr, out_ptr, cols, BLOCK: tl.constexpr):
    """The codes of x (cols,), cols a multiple of 32. Grid: (cols / BLOCK,)."""
    start = tl.program_id(0) * BLOCK
    c = start + tl.arange(0, BLOCK)
    store_codes(tl.load(x_ptr + c, mask=c < cols, other=0.0), start, out_ptr, cols, BLOCK)
