"""Which neurons a predictor's scores choose."""

import triton
import triton.language as tl


@triton.jit
def select(score_ptr, index_ptr, count_ptr, start, stop, cutoff_ptr, BLOCK: tl.constexpr):
    """Write the indices in [start, stop) whose score is at least the cut-off, ascending, and their count.

    Indices count from `start`. Grid: (1,).
    """
    cutoff = tl.load(cutoff_ptr)
    count = 0
    for first in range(start, stop, BLOCK):
        i = first + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + i, mask=i < stop, other=0.0)
        chosen = ((score >= cutoff) & (i < stop)).to(tl.int32)
        at = count + tl.cumsum(chosen, axis=0) - 1
        tl.store(index_ptr + at, i - start, mask=chosen != 0)
        count += tl.sum(chosen, axis=0)
    tl.store(count_ptr, count)
