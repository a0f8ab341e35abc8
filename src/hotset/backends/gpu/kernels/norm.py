"""RMS norm (arXiv 1910.07467) and layer norm (arXiv 1607.06450)."""

import triton
import triton.language as tl


@triton.jit
def moments(x, mask, size, eps, LAYER: tl.constexpr):
    """Mean (0 unless LAYER) and reciprocal deviation of x (BLOCK,), of which `size` numbers count."""
    mean = 0.0
    if LAYER:
        mean = tl.sum(x, axis=0) / size
    centred = tl.where(mask, x - mean, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / size + eps)


@triton.jit
def norm(
    x_ptr, weight_ptr, bias_ptr, out_ptr, size, eps, LAYER: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (T, size) = norm(x (T, size)), or += with ADD. Grid: (T,); BLOCK >= size."""
    at = tl.program_id(0).to(tl.int64) * size
    c = tl.arange(0, BLOCK)
    mask = c < size
    x = tl.load(x_ptr + at + c, mask=mask, other=0.0)
    mean, scale = moments(x, mask, size, eps, LAYER)
    y = (x - mean) * scale * tl.load(weight_ptr + c, mask=mask, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + c, mask=mask, other=0.0)
    if ADD:
        y += tl.load(out_ptr + at + c, mask=mask, other=0.0)
    tl.store(out_ptr + at + c, y, mask=mask)
