"""How fast a model runs here: prefill, decode, and decode's share of the memory bandwidth."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hotset.activations.sample_text import sample_text
from hotset.core.batch import Batch, Work
from hotset.model.transformer import SINK_TOKENS
from hotset.serve.loaded import Model

PREFILL_TOKENS = 512
DECODE_TOKENS = 128


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats. One GB is 10^9 bytes."""

    prefill_tokens: int
    decode_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    decode_gb_per_second: float
    """Bytes of weights that decoding reads, each in its type's own size."""
    memory_gb_per_second: float
    """The most that the same threads read: in a loop that does nothing else, over as many bytes as a token
    reads, so that caches help it as much as they help decoding; or in decoding, where that was faster."""
    density: float | None
    """Share of neurons computed in decoding; None where all are, by the model's plan."""

    @property
    def memory_share(self) -> float:
        """The decode's share of the memory bandwidth."""
        return self.decode_gb_per_second / self.memory_gb_per_second


def measure(model: Model, *, repeats: int = 3, progress: Callable[[int, int], None] | None = None) -> Speed:
    """Time a prompt of 512 tokens, and 128 single tokens after the first few, without sampling.

    These few are not timed, for there layers compute all neurons that an approximate plan would leave out
    (`SINK_TOKENS`). Tokens are those of a built-in text, over and over: which neurons fire depends on what is
    said. A first, shorter round warms up.
    """
    context = model.config.context_length
    opening = min(SINK_TOKENS, context - 1)
    n_prefill, n_decode = min(PREFILL_TOKENS, context), min(DECODE_TOKENS, context - opening)
    sequence = model.sequence(max(n_prefill, opening + n_decode))
    ids = sample_tokens(model, sequence.capacity)

    def prefill(count: int) -> float:
        sequence.rewind(0)
        start = time.perf_counter()
        model.transformer.forward(Batch.of(sequence, ids[:count], lossless=True))
        return count / (time.perf_counter() - start)

    def decode(count: int) -> float:
        sequence.rewind(0)
        model.transformer.forward(Batch.of(sequence, ids[:opening], lossless=True))
        start = time.perf_counter()
        for i in range(opening, opening + count):
            model.transformer.forward(Batch.of(sequence, ids[i : i + 1]))
        return count / (time.perf_counter() - start)

    prefill(min(64, n_prefill))
    decode(min(8, n_decode))
    before = model.work(sequence)
    prefills, decodes, bandwidths = [], [], []
    for done in range(repeats):
        prefills.append(prefill(n_prefill))
        decodes.append(decode(n_decode))
        read = model.traffic.bytes_per_token(neurons_per_token(before, model.work(sequence)))
        bandwidths += [model.backend.memory_bandwidth(int(read)), decodes[-1] * read / 1e9]
        if progress:
            progress(done + 1, repeats)
    computed = neurons_per_token(before, model.work(sequence))
    decoded, gigabytes = median(decodes), model.traffic.bytes_per_token(computed) / 1e9
    return Speed(
        n_prefill,
        n_decode,
        median(prefills),
        decoded,
        decoded * gigabytes,
        max(*bandwidths, decoded * gigabytes),
        density(model, computed),
    )


def sample_tokens(model: Model, count: int) -> NDArray[np.int32]:
    """So many tokens of the built-in text, which is repeated as needed."""
    return np.resize(np.array(model.tokenizer.encode(sample_text()), np.int32), count)


def neurons_per_token(before: list[Work | None], after: list[Work | None]) -> list[float]:
    """Neurons that each layer computed for a token between two calls of `Model.work`."""
    pairs = zip(before, after, strict=True)
    return [(b.read - a.read) / max(b.rows - a.rows, 1) if a and b else 0.0 for a, b in pairs]


def density(model: Model, computed: list[float]) -> float | None:
    """Share of neurons computed in the layers that choose them; None where none does."""
    layers = zip(model.config.layers, computed, strict=True)
    choosing = [n for layer, n in layers if layer.ffn]
    if not model.chooses_neurons:
        return None
    return sum(choosing) / len(choosing) / model.config.ffn_size
