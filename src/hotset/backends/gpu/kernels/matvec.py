"""One token's products with a matrix, each program taking whole rows: nothing to add up afterwards."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.activation import activate, gated
from hotset.backends.gpu.kernels.tiles import codes, scales


@triton.jit
def dot_rows(
    x_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, rows, n_rows, cols, KIND: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Products (BR,) of `rows` (BR,) of the matrix with x (cols,); rows past the last repeat it."""
    # A thread loads CW columns at once and sums them by itself; threads are summed at the end.
    CW: tl.constexpr = 8 if KIND == 0 else (16 if KIND == 8 or KIND == 1 else 32)
    NC: tl.constexpr = BC // CW
    rows = tl.minimum(rows, n_rows - 1)
    row_mask = rows >= 0
    acc = tl.zeros((BR, NC), tl.float32)
    for start in range(0, cols, BC):
        c = start + tl.arange(0, BC)
        if EVEN:
            x = tl.load(x_ptr + c)
        else:
            x = tl.load(x_ptr + c, mask=c < cols, other=0.0)
        x = tl.reshape(x, (1, NC, CW))
        q = codes(code_ptr, high_ptr, rows, row_mask, start, cols, KIND, BR, BC, EVEN)
        part = tl.sum(tl.reshape(q, (BR, NC, CW)) * x, axis=2)
        if KIND == 0:  # FLOAT
            acc += part
        else:
            scale, least = scales(scale_ptr, super_ptr, rows, row_mask, start, cols, KIND, BR, BC, CW, EVEN)
            acc += part * scale
            if KIND == 3 or KIND == 4 or KIND == 6 or KIND == 7:  # with minima
                acc += tl.sum(x, axis=2) * least
    return tl.sum(acc, axis=1)


@triton.jit
def matvec(
    x_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, bias_ptr, out_ptr, n_rows, cols, out_stride,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr, RELU: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """out (T, n_rows) = W x + b, or += with ADD. Grid: (n_rows / BR, T); rows of out are out_stride apart."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    token = tl.program_id(1)
    y = dot_rows(
        x_ptr + token * cols, code_ptr, high_ptr, scale_ptr, super_ptr, rows, n_rows, cols, KIND, BR, BC, EVEN
    )
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
    up_high_ptr, up_scale_ptr, up_super_ptr, up_bias_ptr, h_ptr, n_rows, cols, GATE_KIND: tl.constexpr,
    UP_KIND: tl.constexpr, GATED: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """h (T, n_rows) = act(gate x) (up x), or act(up x) without a gate. Grid: (n_rows / BR, T)."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    token = tl.program_id(1)
    x_ptr += token * cols
    mask = rows < n_rows
    up = dot_rows(
        x_ptr, up_code_ptr, up_high_ptr, up_scale_ptr, up_super_ptr, rows, n_rows, cols, UP_KIND, BR, BC, EVEN
    )
    if UP_BIAS:
        up += tl.load(up_bias_ptr + rows, mask=mask, other=0.0)
    if GATED:
        gate = dot_rows(
            x_ptr, gate_code_ptr, gate_high_ptr, gate_scale_ptr, gate_super_ptr, rows, n_rows, cols,
            GATE_KIND, BR, BC, EVEN,
        )  # fmt: skip
        if GATE_BIAS:
            gate += tl.load(gate_bias_ptr + rows, mask=mask, other=0.0)
        h = gated(gate, up, ACTIVATION)
    else:
        h = activate(up, ACTIVATION)
    tl.store(h_ptr + token.to(tl.int64) * n_rows + rows, h, mask=mask)
