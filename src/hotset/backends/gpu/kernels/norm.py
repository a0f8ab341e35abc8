"""RMS norm (arXiv 1910.07467) and layer norm (arXiv 1607.06450)."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.quantise import store_codes


@triton.jit
def moments(x, mask, size, eps, LAYER: tl.constexpr):
    """Mean (0 unless LAYER) and reciprocal deviation of each row of x (rows, BLOCK), (rows, 1)."""
    mean = tl.zeros((x.shape[0], 1), tl.float32)
    if LAYER:
        mean = tl.sum(x, axis=1)[:, None] / size
    centred = tl.where(mask, x - mean, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1)[:, None] / size + eps)


@triton.jit
def norm(
    x_ptr, x_stride, weight_ptr, bias_ptr, out_ptr, out_stride, code_ptr, tokens, size, eps,
    LAYER: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr, CODES: tl.constexpr, BT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out (T, size) = norm(x (T, size)), or += with ADD; CODES: of one token, its codes too (`quantise`).

    Rows are x_stride and out_stride apart. Grid: (T / BT,); BLOCK >= size.
    """
    token = tl.program_id(0) * BT + tl.arange(0, BT)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    mask = (token < tokens) & (c < size)
    at = token.to(tl.int64) * out_stride + c
    x = tl.load(x_ptr + token.to(tl.int64) * x_stride + c, mask=mask, other=0.0)
    mean, scale = moments(x, mask, size, eps, LAYER)
    y = (x - mean) * scale * tl.load(weight_ptr + c, mask=c < size, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + c, mask=c < size, other=0.0)
    if ADD:
        y += tl.load(out_ptr + at, mask=mask, other=0.0)
    tl.store(out_ptr + at, y, mask=mask)
    if CODES:
        y = tl.sum(tl.where(mask, y, 0.0), axis=0)  # of the one token
        store_codes(y, 0, code_ptr, size, BLOCK)
