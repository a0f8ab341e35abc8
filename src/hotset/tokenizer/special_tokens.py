"""Finds special tokens written out in text: from left to right, the longest at each place."""

import re
from collections.abc import Callable, Iterator, Mapping


class SpecialTokens:
    """Some tokens that are cut out of text before anything else is tokenised, such as ``<|im_end|>``."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """``ids`` maps each token's text (not empty) to its id."""
        self._ids = dict(ids)
        # Thousands of alternatives would be slow to compile and to match, so the expression only finds where
        # the first two characters of some token stand; what follows is looked up by length, longest first.
        lengths: dict[str, set[int]] = {}
        for text in self._ids:
            lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {head: sorted(found, reverse=True) for head, found in lengths.items()}
        heads = sorted(self._lengths, key=len, reverse=True)
        self._heads = re.compile("|".join(map(re.escape, heads))) if heads else None

    def split(
        self, text: str, allowed: Callable[[str, int, int], bool] | None = None
    ) -> Iterator[tuple[str, int | None]]:
        """Yield ``text`` in order as (plain text, None), never empty, and (token text, token id).

        ``allowed(token, start, end)`` is whether the text there may be that token; None: all may.
        """
        start = 0
        at = 0
        while self._heads and (head := self._heads.search(text, at)):
            at = head.start()
            token = self._token_at(text, at, allowed)
            if token is None:
                at += 1
                continue
            if start < at:
                yield text[start:at], None
            yield token, self._ids[token]
            start = at = at + len(token)
        if start < len(text):
            yield text[start:], None

    def _token_at(self, text: str, at: int, allowed: Callable[[str, int, int], bool] | None) -> str | None:
        for head in (text[at : at + 2], text[at]):
            for length in self._lengths.get(head, ()):
                token = text[at : at + length]
                if token in self._ids and (allowed is None or allowed(token, at, at + length)):
                    return token
        return None
