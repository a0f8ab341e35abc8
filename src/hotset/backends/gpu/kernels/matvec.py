"""One token's products with a matrix, each program taking whole rows: nothing to add up afterwards."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.activation import activate, gated
from hotset.backends.gpu.kernels.tiles import codes, load, scales


@triton.jit
def dot_rows(
    x_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, rows, n_rows, cols, BITS: tl.constexpr,
    SCALES: tl.constexpr, BR: tl.constexpr, W: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Products (BR,) of `rows` (BR,) of the matrix with x (cols,); rows past the last repeat it.

    Launched as one warp, whose threads take a chunk each, W words of K fields, so that a thread has the x
    that its codes are multiplied with. Of floats, it takes W neighbours K times.
    """
    rows = tl.minimum(rows, n_rows - 1).to(tl.int64)[:, None, None]
    lane = tl.arange(0, 32)[None, :, None]
    w = tl.arange(0, W)[None, None, :]
    acc = tl.zeros((BR, 32, W), tl.float32)
    for start in tl.range(0, cols, 32 * W * K, loop_unroll_factor=2):
        if BITS == 0:
            for k in tl.static_range(K):
                c = start + k * 32 * W + lane * W + w
                x = load(x_ptr + c, c < cols, EVEN)
                acc += load(code_ptr + rows * cols + c, c < cols, EVEN).to(tl.float32) * x
        else:
            c = start + lane * (W * K)
            mask = c < cols
            at = (rows * (cols // (W * K)) + start // (W * K) + lane) * W + w
            words = load(code_ptr + at, mask, EVEN)
            high = words
            if BITS == 6:
                high = load(high_ptr + at, mask, EVEN)
            # Two groups of fields where a chunk has two scales.
            GROUP: tl.constexpr = K // 2 if BITS == 6 else K
            for first in tl.static_range(0, K, GROUP):
                part = tl.zeros((BR, 32, W), tl.float32)
                total = tl.zeros((1, 32, W), tl.float32)
                for k in tl.static_range(first, first + GROUP):
                    x = load(x_ptr + c + k * W + w, mask, EVEN)
                    part += codes(words, high, tl.full((1, 1, 1), k, tl.int32), BITS, SCALES) * x
                    total += x
                scale, least = scales(scale_ptr, super_ptr, rows, c + first * W, cols, mask, SCALES, EVEN)
                acc += part * scale
                if SCALES == 2 or SCALES == 3:  # with minima
                    acc += total * least
    return tl.sum(tl.sum(acc, axis=2), axis=1)


@triton.jit
def matvec(
    x_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, bias_ptr, out_ptr, n_rows, cols, out_stride,
    BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADD: tl.constexpr, RELU: tl.constexpr, BR: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """out (T, n_rows) = W x + b, or += with ADD. Grid: (n_rows / BR, T); rows of out are out_stride apart."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    token = tl.program_id(1)
    y = dot_rows(
        x_ptr + token * cols, code_ptr, high_ptr, scale_ptr, super_ptr, rows, n_rows, cols, BITS, SCALES, BR,
        W, K, EVEN,
    )  # fmt: skip
    mask = rows < n_rows
    if HAS_BIAS:
        y += tl.load(bias_ptr + rows, mask=mask, other=0.0)
    if RELU:
        y = tl.maximum(y, 0.0)
    out_ptr += token.to(tl.int64) * out_stride
    if ADD:
        y += tl.load(out_ptr + rows, mask=mask, other=0.0)
    tl.store(out_ptr + rows, y, mask=mask)


@triton.jit
def neurons_matvec(
    x_ptr, gate_code_ptr, gate_high_ptr, gate_scale_ptr, gate_super_ptr, gate_bias_ptr, up_code_ptr,
    up_high_ptr, up_scale_ptr, up_super_ptr, up_bias_ptr, h_ptr, n_rows, cols, GATE_BITS: tl.constexpr,
    GATE_SCALES: tl.constexpr, GATE_W: tl.constexpr, GATE_K: tl.constexpr, BITS: tl.constexpr,
    SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, GATED: tl.constexpr, GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BR: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """h (T, n_rows) = act(gate x) (up x), or act(up x) without a gate. Grid: (n_rows / BR, T)."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    token = tl.program_id(1)
    x_ptr += token * cols
    mask = rows < n_rows
    up = dot_rows(
        x_ptr, up_code_ptr, up_high_ptr, up_scale_ptr, up_super_ptr, rows, n_rows, cols, BITS, SCALES, BR, W,
        K, EVEN,
    )  # fmt: skip
    if UP_BIAS:
        up += tl.load(up_bias_ptr + rows, mask=mask, other=0.0)
    if GATED:
        gate = dot_rows(
            x_ptr, gate_code_ptr, gate_high_ptr, gate_scale_ptr, gate_super_ptr, rows, n_rows, cols,
            GATE_BITS, GATE_SCALES, BR, GATE_W, GATE_K, EVEN,
        )  # fmt: skip
        if GATE_BIAS:
            gate += tl.load(gate_bias_ptr + rows, mask=mask, other=0.0)
        h = gated(gate, up, ACTIVATION)
    else:
        h = activate(up, ACTIVATION)
    tl.store(h_ptr + token.to(tl.int64) * n_rows + rows, h, mask=mask)
