"""How fast a model runs here: prefill, decode, and decode's share of the memory bandwidth."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hotset.activations.sample_text import sample_text
from hotset.core.batch import Batch, Work
from hotset.model.reading import Neurons
from hotset.model.transformer import SINK_TOKENS
from hotset.serve.loaded import Model


@dataclass(frozen=True)
class Sizes:
    """How much is timed; less where the model's context is smaller. With 0 tokens a part is left out."""

    prompt_tokens: int = 512
    tokens: int = 128
    """Single tokens."""
    repeats: int = 3


_USUAL = Sizes()


def room(context: int) -> Sizes:
    """The most tokens that can be timed in a context."""
    return Sizes(context, context - min(SINK_TOKENS, context - 1))


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats, None for what was left out. One GB is 10^9 bytes."""

    prefill_tokens: int
    decode_tokens: int
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    decode_gb_per_second: float | None
    """Bytes of weights that decoding reads, each in its type's own size."""
    memory_gb_per_second: float
    """The most that the same threads read: in a loop that does nothing else, over as many bytes as a token
    reads, so that caches help it as much as they help decoding; or in decoding, where that was faster."""
    density: float | None
    """Share of neurons computed in decoding; None where all are, by the model's plan."""

    @property
    def memory_share(self) -> float | None:
        """The decode's share of the memory bandwidth."""
        read = self.decode_gb_per_second
        return None if read is None else read / self.memory_gb_per_second


def measure(
    model: Model, sizes: Sizes = _USUAL, *, progress: Callable[[int, int], None] | None = None
) -> Speed:
    """Time a prompt, and single tokens after the first few, without sampling.

    These few are not timed, for there layers compute all neurons that an approximate plan would leave out
    (`SINK_TOKENS`). Tokens are those of a built-in text, over and over: which neurons fire depends on what is
    said. A first, shorter round warms up.
    """
    most = room(model.config.context_length)
    opening = most.prompt_tokens - most.tokens
    n_prefill, n_decode = min(sizes.prompt_tokens, most.prompt_tokens), min(sizes.tokens, most.tokens)
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

    if n_prefill:
        prefill(min(64, n_prefill))
    if n_decode:
        decode(min(8, n_decode))
    before = model.work(sequence)
    prefills, decodes, bandwidths = [], [], []
    for done in range(sizes.repeats):
        if n_prefill:
            prefills.append(prefill(n_prefill))
        if n_decode:
            decodes.append(decode(n_decode))
        read = model.traffic.bytes_per_token(neurons_per_token(before, model.work(sequence)))
        bandwidths.append(model.backend.memory_bandwidth(int(read)))
        if progress:
            progress(done + 1, sizes.repeats)
    computed = neurons_per_token(before, model.work(sequence))
    gigabytes = model.traffic.bytes_per_token(computed) / 1e9
    decoded = median(decodes) if decodes else None
    return Speed(
        n_prefill,
        n_decode,
        median(prefills) if prefills else None,
        decoded,
        decoded and decoded * gigabytes,
        max(bandwidths + [rate * gigabytes for rate in decodes]),
        density(model, computed) if decodes else None,
    )


def sample_tokens(model: Model, count: int) -> NDArray[np.int32]:
    """So many tokens of the built-in text, which is repeated as needed."""
    return np.resize(np.array(model.tokenizer.encode(sample_text()), np.int32), count)


def neurons_per_token(before: list[Work | None], after: list[Work | None]) -> list[Neurons]:
    """What each layer computed for a token between two calls of `Model.work`."""

    def mean(a: Work, b: Work) -> Neurons:
        rows = max(b.rows - a.rows, 1)
        return Neurons((b.chosen - a.chosen) / rows, (b.read - a.read) / rows)

    pairs = zip(before, after, strict=True)
    return [mean(a, b) if a and b else Neurons(0.0, 0.0) for a, b in pairs]


def density(model: Model, computed: list[Neurons]) -> float | None:
    """Share of neurons computed in the layers that choose them; None where none does.

    A neuron whose gate is read needlessly counts, since its predictor has chosen it.
    """
    layers = zip(model.config.layers, computed, strict=True)
    choosing = [n.chosen for layer, n in layers if layer.ffn]
    if not model.chooses_neurons:
        return None
    return sum(choosing) / len(choosing) / model.config.computed_neurons
