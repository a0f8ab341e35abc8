"""Many tokens' products with a matrix, on tensor cores: tiles of weights are dequantised as they are read."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.tiles import weights


@triton.jit
def to_halves(x_ptr, half_ptr, scale_ptr, cols, BLOCK: tl.constexpr):
    """x (T, cols) as float16 times a power of two for each row, (T,), so that no number overflows.

    Grid: (T,).
    """
    token = tl.program_id(0).to(tl.int64)
    x_ptr += token * cols
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, cols, BLOCK):
        c = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(tl.load(x_ptr + c, mask=c < cols, other=0.0)))
    # The exponent of the largest number, of which a row of zeros has none.
    top = tl.maximum(tl.max(largest, axis=0), 1e-30)
    scale = (top.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    for start in range(0, cols, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + c, mask=c < cols, other=0.0) / scale
        tl.store(half_ptr + token * cols + c, x.to(tl.float16), mask=c < cols)
    tl.store(scale_ptr + token, scale)


@triton.jit
def matmul(
    x_ptr, x_scale_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, bias_ptr, out_ptr, tokens, n_rows, cols,
    out_stride, BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr,
    BY_NEURON: tl.constexpr, PRECISION: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """out (T, N) = x W^T + b, W being (n_rows, cols), or with BY_NEURON x W; += with ADD.

    x is float16 with a scale for each token (`to_halves`), or float32 without, multiplied at PRECISION.
    BM tokens by BR rows of outputs and steps of BC columns; BY_NEURON: BC outputs and steps of BR neurons.
    Grid: (T / BM, N / BR or N / BC); rows of out are out_stride apart. EVEN: both BR and BC divide W.
    """
    HALF: tl.constexpr = x_ptr.dtype.element_ty == tl.float16
    t = tl.program_id(0) * BM + tl.arange(0, BM)
    token_mask = t < tokens
    x_row = x_ptr + t.to(tl.int64)[:, None] * (n_rows if BY_NEURON else cols)
    N: tl.constexpr = BC if BY_NEURON else BR
    STEP: tl.constexpr = BR if BY_NEURON else BC
    size = n_rows if BY_NEURON else cols
    outputs = cols if BY_NEURON else n_rows
    first = tl.program_id(1) * N
    n = first + tl.arange(0, N)
    acc = tl.zeros((BM, N), tl.float32)
    for start in range(0, size, STEP):
        k = start + tl.arange(0, STEP)
        x = tl.load(x_row + k[None, :], mask=token_mask[:, None] & (k < size)[None, :], other=0.0)
        if BY_NEURON:
            w = weights(
                code_ptr, high_ptr, scale_ptr, super_ptr, k, k < n_rows, first, cols, BITS, SCALES, BR, BC, W,
                K, EVEN,
            )  # fmt: skip
        else:
            w = weights(
                code_ptr, high_ptr, scale_ptr, super_ptr, n, n < n_rows, start, cols, BITS, SCALES, BR, BC, W,
                K, EVEN,
            )  # fmt: skip
            w = tl.trans(w)
        if HALF:
            acc = tl.dot(x, w.to(tl.float16), acc)
        else:
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
    if HALF:
        acc *= tl.load(x_scale_ptr + t, mask=token_mask, other=0.0)[:, None]
    mask = token_mask[:, None] & (n < outputs)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < outputs, other=0.0)[None, :]
    out_ptr += t.to(tl.int64)[:, None] * out_stride + n[None, :]
    if ADD:
        acc += tl.load(out_ptr, mask=mask, other=0.0)
    tl.store(out_ptr, acc, mask=mask)
