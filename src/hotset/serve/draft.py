"""What an answer may say next, by what its request's own text says: a draft, which the model then verifies.

The text's end is looked for earlier in the text; what followed there is the draft::

    def area(w, h): return w * h   …   def area(w,   ->   h): return w * h
    ^^^^^^^^^^^ was here, so this follows  ^^^^^^^^^

How likely a draft is depends on how long a text is the same before it, and on how such drafts of this
request have fared recently. Drafts are compared with what is chosen even where nobody computes them. Pure:
knows nothing of models.
"""

import numpy as np

from hotset.core.batch import I32

MOST = 15
"""Tokens of a draft: with the row that an answer has anyway, so many rows are one step's."""

_LONGEST = 16
"""Of places that have so many tokens before them in common, the latest is as good as any."""

_CHANCES = (0.2, 0.4, 0.6, 0.8, 0.9)
"""How likely a token is to follow again after 1, 2, 4, 8, 16 same ones or more, before anything is known."""
_WEIGHT = 4.0
"""They count as much as so many tokens seen;"""
_DECAY = 15 / 16
"""each token seen counts so much less with the next one."""


def find(tokens: I32) -> tuple[int, int]:
    """Where the text (T,) may go on as it did before: that place, and how many tokens before it are the same.

    It is the place with the most same tokens before it, up to 16, and the latest of these; (T, 0): there is
    none.
    """
    end = len(tokens)
    if end < 2:
        return end, 0
    places = np.flatnonzero(tokens[:-1] == tokens[-1]) + 1
    if not len(places):
        return end, 0
    length = 1
    while length < _LONGEST:
        longer = places[places > length]
        longer = longer[tokens[longer - 1 - length] == tokens[end - 1 - length]]
        if not len(longer):
            break
        places, length = longer, length + 1
    return int(places[-1]), length


class Drafter:
    """One request's drafts: the place in its text that it follows, and how likely it is to follow it on."""

    def __init__(self) -> None:
        self._place = 0
        self._same = 0
        """Tokens before the place that are the same as the text's last; 0: no place is known."""
        self._seen = [_WEIGHT] * len(_CHANCES)
        self._right = [_WEIGHT * chance for chance in _CHANCES]

    def chances(self, tokens: I32, most: int = MOST) -> list[float]:
        """How likely the first, the first two … of a draft are all right; empty: there is none.

        `tokens` (T,) are all of the text so far. A draft has at most `most` tokens.
        """
        if not self._same:
            self._place, self._same = find(tokens)
        chances = []
        if self._same:
            chance = 1.0
            for same in range(self._same, self._same + min(most, MOST)):
                kind = _kind(same)
                chance *= self._right[kind] / self._seen[kind]
                chances.append(chance)
        return chances

    def draft(self, tokens: I32, count: int) -> I32:
        """The next `count` tokens, after `chances` has found some for this text."""
        # A text that repeats its own end goes on with that, over and over.
        return np.resize(tokens[self._place : self._place + count], count)

    def see(self, tokens: I32, token: int) -> None:
        """Learn which token follows the text (T,)."""
        if not self._same:
            return
        right = bool(tokens[self._place] == token)
        kind = _kind(self._same)
        self._seen[kind] = self._seen[kind] * _DECAY + 1
        self._right[kind] = self._right[kind] * _DECAY + right
        self._place, self._same = (self._place + 1, self._same + 1) if right else (0, 0)


def _kind(same: int) -> int:
    """Lengths of which one is up to twice the other are one kind."""
    return min(same.bit_length(), len(_CHANCES)) - 1
