"""Vectors between the GPU and pinned memory, in words that carry the number of their step.

A word is read and written by one instruction each, which nothing takes apart or keeps back: what NCCL's
low-latency protocol relies on. Grids are (width / BLOCK, rows); `control_ptr` has the step's number and rows.
"""

import triton
import triton.language as tl


@triton.jit
def store_words(word_ptr, data, mask, number, PTX: tl.constexpr):
    """Write 32 bits each, as int64, with the step's number above them."""
    word = (number.to(tl.int64) << 32) | data
    if PTX:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $3, 0; @p st.volatile.global.b64 [$1], $2; mov.b32 $0, 0; }",
            "=r,l,l,r", [word_ptr.to(tl.int64), word, mask.to(tl.int32)],
            tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        tl.store(word_ptr, word, mask=mask)


@triton.jit
def send(x_ptr, word_ptr, control_ptr, width, PTX: tl.constexpr, BLOCK: tl.constexpr):
    """Write x (rows, width), float32, to words (rows, width)."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < tl.where(tl.program_id(1) < tl.load(control_ptr + 1), width, 0)
    at = tl.program_id(1) * width + c
    data = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    store_words(word_ptr + at, data, inside, tl.load(control_ptr), PTX)


@triton.jit
def send_chosen(
    score_ptr, cutoff_ptr, cutoff_stride, word_ptr, control_ptr, neurons, VALUES: tl.constexpr,
    PTX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write which neurons' scores (rows, neurons) reach the row's cut-off, or, if it is NaN, the scores.

    A row of the words has ceil(neurons / 32) for bits, and behind them one for each score. With VALUES, the
    scores of the neurons of a word of bits are written too, those that reach it one after the other. Grid:
    (neurons / BLOCK, rows); BLOCK is a multiple of 32. Scores that are NaN reach every cut-off.
    """
    t, first = tl.program_id(1), tl.program_id(0) * BLOCK
    if t < tl.load(control_ptr + 1):
        number = tl.load(control_ptr)
        cutoff = tl.load(cutoff_ptr + t * cutoff_stride)
        bit_words = (neurons + 31) // 32
        words = word_ptr + t * (bit_words + neurons)
        scores = score_ptr + t * neurons
        if cutoff != cutoff:
            j = first + tl.arange(0, BLOCK)
            whole = tl.load(scores + j, mask=j < neurons, other=0.0).to(tl.int32, bitcast=True)
            store_words(words + bit_words + j, whole.to(tl.int64) & 0xFFFFFFFF, j < neurons, number, PTX)
        else:
            word, bit = tl.arange(0, BLOCK // 32), tl.arange(0, 32)
            of = first + word[:, None] * 32 + bit[None, :]
            score = tl.load(scores + of, mask=of < neurons, other=0.0)
            chosen = tl.where(score < cutoff, 0, 1) * (of < neurons).to(tl.int32)
            bits = tl.sum(chosen.to(tl.int64) << bit[None, :].to(tl.int64), axis=1)
            at = first // 32 + word
            store_words(words + at, bits, at < bit_words, number, PTX)
            if VALUES:
                behind = bit_words + first + word[:, None] * 32 + tl.cumsum(chosen, axis=1) - chosen
                value = score.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
                store_words(words + behind, value, chosen != 0, number, PTX)


@triton.jit
def receive(
    word_ptr, out_ptr, control_ptr, given_up_ptr, told_ptr, width, polls, ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Set out (rows, width) to the words' data, each once it has the step's number, or add it with ADD.

    After so many looks the step's number is left in `given_up`, which later calls of the step see, so that
    they do not wait again, and in pinned memory, `told`.
    """
    number = tl.load(control_ptr)
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < tl.where(tl.program_id(1) < tl.load(control_ptr + 1), width, 0)
    at = tl.program_id(1) * width + c
    word = tl.load(word_ptr + at, mask=inside, other=0, volatile=True)
    missing = inside & ((word >> 32).to(tl.int32) != number)
    left = tl.where(tl.load(given_up_ptr) == number, 0, polls)
    while (tl.max(missing.to(tl.int32), axis=0) != 0) & (left > 0):
        word = tl.where(missing, tl.load(word_ptr + at, mask=missing, other=0, volatile=True), word)
        missing = inside & ((word >> 32).to(tl.int32) != number)
        left -= 1
    if tl.max(missing.to(tl.int32), axis=0) != 0:
        tl.store(given_up_ptr, number)
        tl.store(told_ptr, number)
    x = word.to(tl.int32).to(tl.float32, bitcast=True)
    if ADD:
        x += tl.load(out_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, x, mask=inside)
