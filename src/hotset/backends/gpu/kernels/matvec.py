"""One token's products with a matrix, each program taking whole rows: nothing to add up afterwards."""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.activation import activate, gated
from hotset.backends.gpu.kernels.tiles import load, scales, zero_point


@triton.jit
def dot4(codes, x, total, PTX: tl.constexpr):
    """total + the products of four unsigned bytes of `codes` and four signed ones of x, all int32."""
    if PTX:
        total = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, x, total], tl.int32, is_pure=True, pack=1
        )
    else:
        for j in tl.static_range(4):
            total += ((codes >> (8 * j)) & 255) * ((x << (24 - 8 * j)) >> 24)
    return total


@triton.jit
def high_fields(high, SECOND: tl.constexpr):
    """The upper two bits of every first, or SECOND, nibble of a word, from its 16 upper bits, in place."""
    h = high.to(tl.int32)
    spread = (h & 0xF) | (h & 0xF0) << 4 | (h & 0xF00) << 8 | (h & 0xF000) << 12
    return (spread & 0x0C0C0C0C) << 2 if SECOND else (spread & 0x03030303) << 4


@triton.jit
def dot_chunk(
    code_ptr, high_ptr, at, x_ptr, mask, BITS: tl.constexpr, W: tl.constexpr, PTX: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The codes of chunks `at` (BR, 32, 1), zero point included, times those of x at `x_ptr` (1, 32, 1).

    With BITS 6 the products of the chunk's first half and of its second; else both are the whole's.
    Float32, (BR, 32, 1).
    """
    # A thread loads 16 bytes at most at once, and sums over what it has loaded.
    LOADED: tl.constexpr = 4 if W > 4 else W
    w = tl.arange(0, LOADED)[None, None, :]
    words = load(code_ptr + at * W + w, mask, EVEN)
    total = tl.zeros_like(words)
    second = total
    if BITS == 8:
        total = dot4(words, load(x_ptr + w, mask, EVEN), total, PTX)
        words = load(code_ptr + at * W + 4 + w, mask, EVEN)
        total = dot4(words, load(x_ptr + 4 + w, mask, EVEN), total, PTX)
    elif BITS == 2:
        for i in tl.static_range(4):
            part = (words >> (2 * i)) & 0x03030303
            total = dot4(part, load(x_ptr + 2 * i + w, mask, EVEN), total, PTX)
    elif BITS == 4:
        total = dot4(words & 0x0F0F0F0F, load(x_ptr + w, mask, EVEN), total, PTX)
        total = dot4((words >> 4) & 0x0F0F0F0F, load(x_ptr + 4 + w, mask, EVEN), total, PTX)
    else:
        high = load(high_ptr + at * W + w, mask, EVEN)
        for i in tl.static_range(2):
            part = ((words >> (4 * i)) & 0x0F0F0F0F) | high_fields(high, i == 1)
            x = load(x_ptr + 4 * i + w, mask, EVEN)
            total = dot4(part, x & 0xFFFF, total, PTX)
            second = dot4(part, x & ~0xFFFF, second, PTX)
    if BITS != 6:
        second = total
    return _over_words(total), _over_words(second)


@triton.jit
def _over_words(x):
    return tl.sum(x, axis=2, keep_dims=True).to(tl.float32)


@triton.jit
def dot_rows(
    x_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, rows, n_rows, cols, BITS: tl.constexpr,
    SCALES: tl.constexpr, BR: tl.constexpr, W: tl.constexpr, K: tl.constexpr, PTX: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Products (BR,) of `rows` (BR,) of the matrix with a token; rows past the last repeat it.

    x is the token's codes (`hotset.backends.gpu.kernels.quantise`), for a matrix of floats its numbers.
    Launched as one warp, whose threads take a chunk each; of floats, W neighbours K times.
    """
    rows = tl.minimum(rows, n_rows - 1).to(tl.int64)[:, None, None]
    lane = tl.arange(0, 32)[None, :, None]
    acc = tl.zeros((BR, 32, W if BITS == 0 else 1), tl.float32)
    for start in tl.range(0, cols, 32 * W * K, loop_unroll_factor=2):
        if BITS == 0:
            for k in tl.static_range(K):
                c = start + k * 32 * W + lane * W + tl.arange(0, W)[None, None, :]
                x = load(x_ptr + c, c < cols, EVEN)
                acc += load(code_ptr + rows * cols + c, c < cols, EVEN).to(tl.float32) * x
        else:
            ZERO: tl.constexpr = zero_point(BITS, SCALES)
            block = start // 32 + lane
            mask = block < cols // 32
            at = rows * (cols // 32) + block
            first, second = dot_chunk(code_ptr, high_ptr, at, x_ptr + block * 8, mask, BITS, W, PTX, EVEN)
            scale_ptr_x = x_ptr + cols // 4
            x_scale = load(scale_ptr_x + block, mask, EVEN).to(tl.float32, bitcast=True)
            sum_ptr = scale_ptr_x + cols // 32 + block * 2
            first_sum = load(sum_ptr, mask, EVEN).to(tl.float32, bitcast=True)
            second_sum = load(sum_ptr + 1, mask, EVEN).to(tl.float32, bitcast=True)
            scale, least = scales(scale_ptr, super_ptr, rows, block * 32, cols, mask, SCALES, EVEN)
            if BITS == 6:
                y = (first - ZERO * first_sum) * scale
                if SCALES == 5:  # with minima
                    y += first_sum * least
                scale, least = scales(scale_ptr, super_ptr, rows, block * 32 + 16, cols, mask, SCALES, EVEN)
                y += (second - ZERO * second_sum) * scale
                if SCALES == 5:
                    y += second_sum * least
            else:
                x_sum = first_sum + second_sum
                y = (first - ZERO * x_sum) * scale
                if SCALES == 2 or SCALES == 3:  # with minima
                    y += x_sum * least
            acc += y * x_scale
    return tl.sum(tl.sum(acc, axis=2), axis=1)


@triton.jit
def matvec(
    x_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, bias_ptr, out_ptr, n_rows, cols,
    BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADD: tl.constexpr, RELU: tl.constexpr, BR: tl.constexpr, PTX: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """out (n_rows,) = W x + b, or += with ADD. Grid: (n_rows / BR,)."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    y = dot_rows(
        x_ptr, code_ptr, high_ptr, scale_ptr, super_ptr, rows, n_rows, cols, BITS, SCALES, BR, W, K, PTX,
        EVEN,
    )  # fmt: skip
    mask = rows < n_rows
    if HAS_BIAS:
        y += tl.load(bias_ptr + rows, mask=mask, other=0.0)
    if RELU:
        y = tl.maximum(y, 0.0)
    if ADD:
        y += tl.load(out_ptr + rows, mask=mask, other=0.0)
    tl.store(out_ptr + rows, y, mask=mask)


@triton.jit
def neurons_matvec(
    x_ptr, gate_code_ptr, gate_high_ptr, gate_scale_ptr, gate_super_ptr, gate_bias_ptr, up_code_ptr,
    up_high_ptr, up_scale_ptr, up_super_ptr, up_bias_ptr, h_ptr, n_rows, cols, GATE_BITS: tl.constexpr,
    GATE_SCALES: tl.constexpr, GATE_W: tl.constexpr, GATE_K: tl.constexpr, BITS: tl.constexpr,
    SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr, GATED: tl.constexpr, GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BR: tl.constexpr, PTX: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """h (n_rows,) = act(gate x) (up x), or act(up x) without a gate. Grid: (n_rows / BR,)."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    mask = rows < n_rows
    h = tl.zeros((BR,), tl.float32)
    fires = True
    gate = h
    if GATED:
        gate = dot_rows(
            x_ptr, gate_code_ptr, gate_high_ptr, gate_scale_ptr, gate_super_ptr, rows, n_rows, cols,
            GATE_BITS, GATE_SCALES, BR, GATE_W, GATE_K, PTX, EVEN,
        )  # fmt: skip
        if GATE_BIAS:
            gate += tl.load(gate_bias_ptr + rows, mask=mask, other=0.0)
        # Where the gate makes zeros, up is read only for neurons that fire.
        if ACTIVATION <= 2:
            fires = tl.max(gate, axis=0) > 0.0
    if fires:
        up = dot_rows(
            x_ptr, up_code_ptr, up_high_ptr, up_scale_ptr, up_super_ptr, rows, n_rows, cols, BITS, SCALES, BR,
            W, K, PTX, EVEN,
        )  # fmt: skip
        if UP_BIAS:
            up += tl.load(up_bias_ptr + rows, mask=mask, other=0.0)
        if GATED:
            h = gated(gate, up, ACTIVATION)
        else:
            h = activate(up, ACTIVATION)
    tl.store(h_ptr + rows, h, mask=mask)
