"""How fast a model runs here: prefill, decode, and decode's share of the memory bandwidth."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from hotset.engine.load import Model

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
    """What the same threads read from memory when they do nothing else."""

    @property
    def memory_share(self) -> float:
        """The decode's share of the memory bandwidth."""
        return self.decode_gb_per_second / self.memory_gb_per_second


def measure(model: Model, *, repeats: int = 3, progress: Callable[[int, int], None] | None = None) -> Speed:
    """Time a prompt of 512 tokens and 128 single tokens, each from an empty context and without sampling.

    Tokens are random: a dense model's speed does not depend on them. A first, shorter round warms up.
    """
    n_prefill = min(PREFILL_TOKENS, model.config.context_length)
    n_decode = min(DECODE_TOKENS, model.config.context_length)
    kv = model.kv_cache(max(n_prefill, n_decode))
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, kv.capacity, dtype=np.int32)

    def prefill(count: int) -> float:
        kv.truncate(0)
        start = time.perf_counter()
        model.transformer.forward(ids[:count], kv)
        return count / (time.perf_counter() - start)

    def decode(count: int) -> float:
        kv.truncate(0)
        start = time.perf_counter()
        for i in range(count):
            model.transformer.forward(ids[i : i + 1], kv)
        return count / (time.perf_counter() - start)

    prefill(min(64, n_prefill))
    decode(min(8, n_decode))
    prefills, decodes, bandwidths = [], [], []
    for done in range(repeats):
        prefills.append(prefill(n_prefill))
        decodes.append(decode(n_decode))
        bandwidths.append(model.backend.memory_bandwidth())
        if progress:
            progress(done + 1, repeats)
    decoded = median(decodes)
    return Speed(
        n_prefill,
        n_decode,
        median(prefills),
        decoded,
        decoded * model.weight_bytes_per_token / 1e9,
        median(bandwidths),
    )
