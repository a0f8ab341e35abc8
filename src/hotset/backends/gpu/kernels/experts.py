"""A mixture of experts: the router's selection, and few tokens' products with the experts that are here.

The weights of an expert lie in a *slot*. ``expert`` (S,) says which expert a slot holds, ``slot`` (E,) where
an expert lies, -1 for nowhere. A token's weights (E,) are positive for the experts that it selects.
"""

import triton
import triton.language as tl

from hotset.backends.gpu.kernels.activation import activate, gated
from hotset.backends.gpu.kernels.matvec import dot_rows
from hotset.backends.gpu.kernels.quantise import store_codes
from hotset.backends.gpu.kernels.tiles import weights

LEAST_SUM: tl.constexpr = tl.constexpr(6.1e-5)
"""As `hotset.backends.maths.LEAST_SUM`."""


@triton.jit
def select_experts(
    logit_ptr, bias_ptr, factor_ptr, out_ptr, experts, scale, USED: tl.constexpr, GATING: tl.constexpr,
    NORMALISED: tl.constexpr, GROUPS: tl.constexpr, GROUPS_USED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_FACTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights (T, experts) of logits, by the rule of `hotset.backends.maths.route`, times experts' factors.

    GATING: 0 softmax, 1 sigmoid, 2 softmax of the selected. Grid: (T,); BLOCK >= experts.
    """
    e = tl.arange(0, BLOCK)
    mask = e < experts
    at = tl.program_id(0) * experts + e
    logits = tl.load(logit_ptr + at, mask=mask, other=float("-inf"))
    p = logits
    if GATING == 0:
        p = tl.exp(logits - tl.max(logits, axis=0))
        p /= tl.sum(p, axis=0)
    elif GATING == 1:
        p = tl.sigmoid(logits)
    score = p
    if HAS_BIAS:
        score += tl.load(bias_ptr + e, mask=mask, other=0.0)
    score = tl.where(mask, score, float("-inf"))
    if GROUPS > 1:
        group = e // (experts // GROUPS)
        allowed = _best(_of_groups(score, e, group, GROUPS), group, GROUPS_USED)
        score = tl.where(allowed & mask, score, float("-inf"))
    chosen = _best(score, e, USED)
    if GATING == 2:
        p = tl.where(chosen, p, float("-inf"))
        p = tl.exp(p - tl.max(p, axis=0))
        p /= tl.sum(p, axis=0)
    p = tl.where(chosen, p, 0.0)
    if NORMALISED:
        p /= tl.maximum(tl.sum(p, axis=0), LEAST_SUM)
    if HAS_FACTORS:
        p *= tl.load(factor_ptr + e, mask=mask, other=0.0)
    tl.store(out_ptr + at, p * scale, mask=mask)


@triton.jit
def _best(score, of, COUNT: tl.constexpr):
    """Whether each place is `of` the COUNT that have the best scores; of equal ones, the first."""
    chosen = of < 0
    for _ in tl.static_range(COUNT):
        first = tl.argmax(score, axis=0)
        best = of == tl.sum(tl.where(tl.arange(0, of.shape[0]) == first, of, 0), axis=0)
        chosen = chosen | best
        score = tl.where(best, float("-inf"), score)
    return chosen


@triton.jit
def _of_groups(score, e, group, GROUPS: tl.constexpr):
    """For each expert, the sum of its group's two best scores, or of the one that there is."""
    sums = score
    for g in tl.static_range(GROUPS):
        own = tl.where(group == g, score, float("-inf"))
        rest = tl.where(e == tl.argmax(own, axis=0), float("-inf"), own)
        second = tl.max(rest, axis=0)
        second = tl.where(second == float("-inf"), 0.0, second)
        sums = tl.where(group == g, tl.max(own, axis=0) + second, sums)
    return sums


@triton.jit
def quantise_rows(x_ptr, out_ptr, cols, code_size, BLOCK: tl.constexpr):
    """The codes of each row of x (T, cols), `code_size` words apart. Grid: (cols / BLOCK, T)."""
    row = tl.program_id(1)
    start = tl.program_id(0) * BLOCK
    c = start + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * cols + c, mask=c < cols, other=0.0)
    store_codes(x, start, out_ptr + row * code_size, cols, BLOCK)


@triton.jit
def expert_neurons(
    x_ptr, x_stride, weight_ptr, expert_ptr, experts, gate_code_ptr, gate_high_ptr, gate_scale_ptr,
    gate_super_ptr, gate_bias_ptr, up_code_ptr, up_high_ptr, up_scale_ptr, up_super_ptr, up_bias_ptr, h_ptr,
    n_rows, size, cols, GATE_BITS: tl.constexpr, GATE_SCALES: tl.constexpr, GATE_W: tl.constexpr,
    GATE_K: tl.constexpr, BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr,
    GATED: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BR: tl.constexpr, PTX: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """h (T, S, size): the neurons of each slot's expert, for tokens that select it.

    Matrices are (n_rows, cols), n_rows = S size; x are codes or numbers, `x_stride` apart. Grid:
    (size / BR, S, T).
    """
    s, t = tl.program_id(1), tl.program_id(2)
    expert = tl.load(expert_ptr + s)
    if expert >= 0:
        weight = tl.load(weight_ptr + t * experts + expert)
        if not (weight <= 0.0):  # NaN is computed, so that it is seen
            own = tl.program_id(0) * BR + tl.arange(0, BR)
            rows, mask = s * size + own, own < size
            x_ptr += t * x_stride
            up = dot_rows(
                x_ptr, up_code_ptr, up_high_ptr, up_scale_ptr, up_super_ptr, rows, n_rows, cols, BITS, SCALES,
                BR, W, K, PTX, EVEN,
            )  # fmt: skip
            if UP_BIAS:
                up += tl.load(up_bias_ptr + rows, mask=mask, other=0.0)
            if GATED:
                gate = dot_rows(
                    x_ptr, gate_code_ptr, gate_high_ptr, gate_scale_ptr, gate_super_ptr, rows, n_rows, cols,
                    GATE_BITS, GATE_SCALES, BR, GATE_W, GATE_K, PTX, EVEN,
                )  # fmt: skip
                if GATE_BIAS:
                    gate += tl.load(gate_bias_ptr + rows, mask=mask, other=0.0)
                h = gated(gate, up, ACTIVATION)
            else:
                h = activate(up, ACTIVATION)
            tl.store(h_ptr + (t * tl.num_programs(1) + s) * size + own, h, mask=mask)


@triton.jit
def quantise_neurons(
    h_ptr, out_ptr, weight_ptr, expert_ptr, experts, size, code_size, BLOCK: tl.constexpr
):  # fmt: skip
    """The codes of h (T, S, size) where a token selects a slot's expert. Grid: (size / BLOCK, S, T)."""
    s, t = tl.program_id(1), tl.program_id(2)
    expert = tl.load(expert_ptr + s)
    if expert >= 0:
        weight = tl.load(weight_ptr + t * experts + expert)
        if not (weight <= 0.0):
            row = t * tl.num_programs(1) + s
            start = tl.program_id(0) * BLOCK
            c = start + tl.arange(0, BLOCK)
            h = tl.load(h_ptr + row * size + c, mask=c < size, other=0.0)
            store_codes(h, start, out_ptr + row * code_size, size, BLOCK)


@triton.jit
def add_experts(
    h_ptr, h_stride, weight_ptr, slot_ptr, experts, slots, code_ptr, high_ptr, scale_ptr, super_ptr, bias_ptr,
    out_ptr, n_rows, size, hidden, BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, BR: tl.constexpr, PTX: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """out (T, hidden) += the sum of a token's experts that are here, times their weights, by their numbers.

    Down is (n_rows, size), n_rows = S hidden; h are codes or numbers (T, S), `h_stride` apart. Grid:
    (hidden / BR, T).
    """
    t = tl.program_id(1)
    own = tl.program_id(0) * BR + tl.arange(0, BR)
    mask = own < hidden
    y = tl.zeros((BR,), tl.float32)
    for expert in range(0, experts):
        weight = tl.load(weight_ptr + t * experts + expert)
        if not (weight <= 0.0):
            s = tl.load(slot_ptr + expert)
            if s >= 0:
                rows = s * hidden + own
                part = dot_rows(
                    h_ptr + (t * slots + s) * h_stride, code_ptr, high_ptr, scale_ptr, super_ptr, rows,
                    n_rows, size, BITS, SCALES, BR, W, K, PTX, EVEN,
                )  # fmt: skip
                if HAS_BIAS:
                    part += tl.load(bias_ptr + rows, mask=mask, other=0.0)
                y += weight * part
    y += tl.load(out_ptr + t * hidden + own, mask=mask, other=0.0)
    tl.store(out_ptr + t * hidden + own, y, mask=mask)


@triton.jit
def add_experts_by_neuron(
    h_ptr, weight_ptr, slot_ptr, experts, slots, code_ptr, high_ptr, scale_ptr, super_ptr, bias_ptr, out_ptr,
    n_rows, size, hidden, BITS: tl.constexpr, SCALES: tl.constexpr, W: tl.constexpr, K: tl.constexpr,
    HAS_BIAS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The same of a down that is stored by neuron, (n_rows, hidden), n_rows = S size, and of numbers h.

    Grid: (hidden / BC, T); BR divides size.
    """
    t = tl.program_id(1)
    first = tl.program_id(0) * BC
    c = first + tl.arange(0, BC)
    y = tl.zeros((BC,), tl.float32)
    for expert in range(0, experts):
        weight = tl.load(weight_ptr + t * experts + expert)
        if not (weight <= 0.0):
            s = tl.load(slot_ptr + expert)
            if s >= 0:
                for start in range(0, size, BR):
                    j = start + tl.arange(0, BR)
                    h = tl.load(h_ptr + (t * slots + s) * size + j, mask=j < size, other=0.0)
                    rows = s * size + j
                    w = weights(
                        code_ptr, high_ptr, scale_ptr, super_ptr, rows, j < size, first, hidden, BITS, SCALES,
                        BR, BC, W, K, False,
                    )  # fmt: skip
                    y += weight * tl.sum(h[:, None] * w, axis=0)
                if HAS_BIAS:
                    y += weight * tl.load(bias_ptr + s * hidden + c, mask=c < hidden, other=0.0)
    y += tl.load(out_ptr + t * hidden + c, mask=c < hidden, other=0.0)
    tl.store(out_ptr + t * hidden + c, y, mask=c < hidden)
