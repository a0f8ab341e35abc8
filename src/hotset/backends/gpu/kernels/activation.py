"""The FFN's non-linearities, numbered in the order of `hotset.core.config.Activation`."""

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of x, any shape."""
    if ACTIVATION <= 1:  # RELU, DRELU
        y = tl.maximum(x, 0.0)
    elif ACTIVATION == 2:  # RELU2
        y = tl.maximum(x, 0.0)
        y = y * y
    elif ACTIVATION == 3:  # SILU
        y = x * tl.sigmoid(x)
    elif ACTIVATION == 4:  # GELU
        y = x * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)))
    elif ACTIVATION == 6:  # SWIGLU_CLAMPED
        g = tl.minimum(x, 7.0)
        y = g * tl.sigmoid(1.702 * g)
    else:  # GELU_TANH
        z = 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2 sqrt(2 / pi): 1 + tanh(z / 2) = 2 sigmoid(z)
        y = x * tl.sigmoid(z)
    return y


@triton.jit
def softplus(x):
    """log(1 + e^x), by a form that does not overflow."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def gated(gate, up, ACTIVATION: tl.constexpr):
    """A gated neuron's value."""
    if ACTIVATION == 1:  # DRELU
        up = tl.maximum(up, 0.0)
    elif ACTIVATION == 6:  # SWIGLU_CLAMPED
        up = tl.minimum(tl.maximum(up, -7.0), 7.0) + 1.0
    return activate(gate, ACTIVATION) * up


@triton.jit
def neurons(gate_ptr, up_ptr, h_ptr, n, GATED: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """h = act(gate) up, or act(up), elementwise on n numbers; h may be gate or up. Grid: (n / BLOCK,)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    up = tl.load(up_ptr + i, mask=mask, other=0.0)
    if GATED:
        h = gated(tl.load(gate_ptr + i, mask=mask, other=0.0), up, ACTIVATION)
    else:
        h = activate(up, ACTIVATION)
    tl.store(h_ptr + i, h, mask=mask)
