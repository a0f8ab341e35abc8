"""How often neurons fire on a little built-in text: enough to place a model whose file does not say."""

from collections.abc import Callable

from hotset.activations.collect import collect
from hotset.activations.corpus import corpus_windows
from hotset.activations.profile import fingerprint
from hotset.activations.sample_text import SUBJECTS
from hotset.backends.contract import F32
from hotset.formats.checkpoint import Checkpoint
from hotset.model.transformer import Transformer
from hotset.tokenizer import Tokenizer

_WINDOW = 128
"""Tokens read at a time, one window of each kind of text: few, as a large model takes a second for ten."""


def quick_frequency(
    transformer: Transformer,
    tokenizer: Tokenizer,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None] | None = None,
) -> F32:
    """(L, F): share of a few hundred tokens for which each neuron fires, in the file's order.

    `progress(done, total)` counts tokens.
    """
    window = min(_WINDOW, transformer.config.context_length)
    windows = corpus_windows(tokenizer, list(SUBJECTS.values()), window, tokens=window * len(SUBJECTS))
    profile = collect(
        transformer,
        windows,
        model=checkpoint.path.name,
        corpus="built-in text",
        fingerprint=fingerprint(checkpoint),
        progress=progress,
    )
    return profile.frequency
