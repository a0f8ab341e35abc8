"""Vectors between the GPU and pinned memory, with the flags that tell the other side; for recorded steps.

Kernels, since copies and stream memory operations of their own each cost a change of engines.
"""

import triton
import triton.language as tl


@triton.jit
def send(
    x_ptr,
    host_ptr,
    flag_ptr,
    size,
    RAISE: tl.constexpr,
    PTX: tl.constexpr,
    THREADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy x (size,) to the host's memory and, with RAISE, raise the flag behind it. Grid: (1,)."""
    for start in range(0, size, BLOCK):
        c = start + tl.arange(0, BLOCK)
        tl.store(host_ptr + c, tl.load(x_ptr + c, mask=c < size), mask=c < size)
    if RAISE:
        # What every thread has stored is seen by all of the system before one of them raises the flag: one,
        # as a second store might come when the host has lowered it.
        if PTX:
            tl.inline_asm_elementwise(
                "fence.acq_rel.sys; mov.u32 $0, 0;", "=r,r,~{memory}", [tl.arange(0, THREADS)],
                tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        tl.debug_barrier()
        tl.store(flag_ptr, 1)


@triton.jit
def receive(host_ptr, out_ptr, flag_ptr, size, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """Copy from the host's memory to out (size,), or add to it, and lower the flag. Grid: (size / BLOCK,).

    For when the flag has been seen raised.
    """
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(host_ptr + c, mask=c < size, other=0.0, volatile=True)
    if ADD:
        x += tl.load(out_ptr + c, mask=c < size, other=0.0)
    tl.store(out_ptr + c, x, mask=c < size)
    if tl.program_id(0) == 0:
        tl.store(flag_ptr, 0)
