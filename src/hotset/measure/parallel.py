"""How fast several sequences are decoded together, and how evenly their tokens come."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from hotset.core.batch import Batch, Span
from hotset.measure.speed import Sizes, sample_tokens
from hotset.serve.loaded import Model

CONTEXT_TOKENS = 128
"""Positions of each sequence before the first token that is timed."""


@dataclass(frozen=True)
class Parallel:
    """Decoding of so many sequences, each of which has one token in every step."""

    sequences: int
    tokens_per_second: float
    """Of all sequences together; the median over the repeats."""
    gap_p50_ms: float
    """Milliseconds between two tokens of a sequence, over all repeats: half are shorter."""
    gap_max_ms: float


def opening(context: int) -> int:
    """How many tokens each sequence has before, less where the model's context is small."""
    return min(CONTEXT_TOKENS, context // 2)


def measure_parallel(
    model: Model, counts: Sequence[int], sizes: Sizes, *, progress: Callable[[int, int], None] | None = None
) -> list[Parallel]:
    """Time steps of so many sequences as each of `counts` says, without sampling.

    Each sequence has `CONTEXT_TOKENS` before, a different part of a built-in text for each, and goes on with
    it for so many steps as `sizes` has single tokens. A first, shorter round warms up.
    """
    context = opening(model.config.context_length)
    tokens = min(sizes.tokens, model.config.context_length - context)
    most = max(counts)
    text = sample_tokens(model, (context + tokens) * most).reshape(most, context + tokens)
    begun = [model.sequence(context + tokens) for _ in range(most)]
    for sequence, ids in zip(begun, text, strict=True):
        model.transformer.forward(Batch.of(sequence, ids[:context], lossless=True, logits=0))

    def gaps(count: int, steps: int) -> list[float]:
        used = [sequence.fork() for sequence in begun[:count]]
        seconds = []
        for step in range(context, context + steps):
            start = time.perf_counter()
            column = np.ascontiguousarray(text[:count, step])
            model.transformer.forward(Batch(column, tuple(Span(sequence, 1) for sequence in used)))
            seconds.append(time.perf_counter() - start)
        return seconds

    results = []
    for done, count in enumerate(counts):
        gaps(count, min(4, tokens))
        rounds = [gaps(count, tokens) for _ in range(sizes.repeats)]
        every = np.concatenate(rounds) * 1e3
        speed = median(count * tokens / sum(seconds) for seconds in rounds)
        results.append(Parallel(count, speed, float(np.median(every)), float(every.max())))
        if progress:
            progress(done + 1, len(counts))
    return results
