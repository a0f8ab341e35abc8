"""SentencePiece's BPE with scores and byte fallback (Llama 2, Mistral, Gemma), straight from the vocabulary.

The algorithm (github.com/google/sentencepiece): text is a row of characters; of all neighbours that together
are a piece of the vocabulary, the pair with the highest score is merged, the leftmost of equals first, until
no pair is left. What is then no piece becomes its UTF-8 bytes. Nothing is built beforehand but a dictionary:
a merge table for the `tokenizers` library would take Gemma's 262,144 pieces some two seconds at every start.
"""

import re
from collections.abc import Callable, Collection, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.tokenizer.special_tokens import SpecialTokens
from hotset.tokenizer.vocabulary import Allowed

SPACE = "\u2581"
"""Stands for a space inside pieces."""

_CACHED_WORDS = 1 << 16
_CACHED_WORD_LENGTH = 64


class SentencePieceEncoder:
    """Encodes text; the words met are remembered, up to a bound."""

    def __init__(
        self,
        *,
        pieces: dict[str, int],
        scores: NDArray[np.number[Any]],
        byte_ids: Sequence[int],
        control: dict[str, int],
        user_defined: dict[str, int],
        add_space_prefix: bool,
        remove_extra_whitespaces: bool,
        swallow_spaces: Collection[str] = (),
    ) -> None:
        """``pieces`` are the mergeable ones, with ``scores`` by id; ``byte_ids`` are the byte tokens by byte.

        ``user_defined`` tokens are found in every text, ``control`` tokens only where the caller allows it.
        Those among ``swallow_spaces`` take the spaces and line ends that follow them along.
        """
        self._swallow_spaces = frozenset(swallow_spaces)
        self._pieces = pieces
        self._costs = np.negative(scores, dtype=np.float32).tolist()
        self._byte_ids = byte_ids
        self._user_defined_texts = frozenset(user_defined)
        self._user_defined = SpecialTokens(user_defined)
        self._all_special = SpecialTokens(control | user_defined)
        self._add_space_prefix = add_space_prefix
        self._remove_extra_whitespaces = remove_extra_whitespaces
        self._word_start = _word_start(pieces)
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str, control: bool | Allowed) -> list[int]:
        special_tokens = self._all_special if control else self._user_defined
        allowed = None if isinstance(control, bool) else self._or_user_defined(control)
        ids: list[int] = []
        swallow = False
        for found, special in special_tokens.split(text, allowed):
            if special is not None:
                ids.append(special)
                swallow = found in self._swallow_spaces
                continue
            fragment = found.lstrip() if swallow else found
            swallow = False
            for word in self._word_start.split(self._normalise(fragment)):
                ids += self._word(word)
        return ids

    def _or_user_defined(self, control: Allowed) -> Callable[[str, int, int], bool]:
        return lambda token, start, end: token in self._user_defined_texts or control(start, end)

    def _normalise(self, text: str) -> str:
        if self._remove_extra_whitespaces:
            text = re.sub(" +", " ", text).strip(" ")
        if self._add_space_prefix and text:
            text = " " + text
        return text.replace(" ", SPACE)

    def _word(self, word: str) -> list[int]:
        ids = self._words.get(word)
        if ids is None:
            ids = [id for piece in self._merge(word) for id in self._ids(piece)]
            if len(word) <= _CACHED_WORD_LENGTH:
                if len(self._words) >= _CACHED_WORDS:
                    self._words.clear()
                self._words[word] = ids
        return ids

    def _merge(self, word: str) -> list[str]:
        """The pieces of ``word`` after all merges."""
        pieces, costs = self._pieces, self._costs
        symbols = list(word)  # "" where a symbol was merged into one on its left
        count = len(symbols)
        following = list(range(1, count + 1))
        preceding = list(range(-1, count - 1))
        candidates = [
            (costs[id], left, left + 1, 2)
            for left in range(count - 1)
            if (id := pieces.get(symbols[left] + symbols[left + 1])) is not None
        ]
        heapify(candidates)
        while candidates:
            _, left, right, length = heappop(candidates)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
                continue  # one of the two has been merged with another since
            symbols[left] += symbols[right]
            symbols[right] = ""
            after = following[left] = following[right]
            if after < count:
                preceding[after] = left
                merged = symbols[left] + symbols[after]
                if (id := pieces.get(merged)) is not None:
                    heappush(candidates, (costs[id], left, after, len(merged)))
            before = preceding[left]
            if before >= 0:
                merged = symbols[before] + symbols[left]
                if (id := pieces.get(merged)) is not None:
                    heappush(candidates, (costs[id], before, left, len(merged)))
        return [symbol for symbol in symbols if symbol]

    def _ids(self, piece: str) -> list[int]:
        if (id := self._pieces.get(piece)) is not None:
            return [id]
        return [self._byte_ids[byte] for byte in piece.encode()]


def _word_start(pieces: dict[str, int]) -> re.Pattern[str]:
    """Where text may be cut and the result stays: before a space that no piece joins to what precedes it.

    Short words are then encoded once and remembered. Nearly no piece has a space after another character; the
    characters before the spaces of those that do (``>`` for Gemma 3's ``>▁</``) are left uncut.
    """
    separator = "\0"  # thus never cut after
    joined = {before[-1:] for before in separator.join(pieces).split(SPACE)[:-1]} | {separator}
    return re.compile(f"(?<=[^{SPACE}{re.escape(''.join(sorted(joined)))}])(?={SPACE})")
