"""Calibration text: windows of tokens, drawn from several texts in turn."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from hotset.activations.capture import windows_of
from hotset.tokenizer import Tokenizer


def corpus_windows(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, tokens: int | None = None
) -> list[NDArray[np.int32]]:
    """Windows of `length` tokens, at most `tokens` in all, one of each text after the other while they last.

    So all texts have their share however few tokens are asked for, both halves of the windows have the same
    mix, and no window spans two texts. Windows begin as the model's texts do.
    """
    opening = list(tokenizer.encode("", add_special=True))
    bos = tokenizer.bos_id if tokenizer.bos_id in opening else None
    of_texts = [windows_of(tokenizer.encode(text, parse_special=False), length, bos) for text in texts]
    drawn = [window for turn in zip_longest(*of_texts) for window in turn if window is not None]
    return drawn if tokens is None else drawn[: tokens // length]
