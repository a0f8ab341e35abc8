"""Where a predictor cuts off in one layer of one sequence, and how audits move it: the definition.

An *audit* looks at one token in one layer: more neurons are computed there, so that what the predictor would
have left out is known. In a prompt these are all; in an answer the chosen ones and, in turn, a quarter of the
others, which count four times. Of a token whose neurons add ``|h_j|``, a cut-off loses the share that lies in
neurons of lower scores; the cut-off is where the sequence's recent audits lose ``1 - kept`` on average. The
native core does the same (csrc/layers/cutoff.h); backends differ by rounding.

All depends on the sequence's own tokens and their positions, so that neither its neighbours in a batch nor
how its prompt was cut change a bit, and a sequence that goes back is as it was then.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

LEVELS = 2.0 ** np.arange(-3, 4)
"""An audit keeps the scores at which so many times what may be lost is lost."""
MEMORY = 16
"""Audits that count."""
HALF_LIFE = 128.0
"""Tokens after which an audit counts half."""
START_WEIGHT = 1.0
"""The plan's cut-off counts like so many audits at the sequence's first position."""
FIRST_GAP, LEAST_GAP, MOST_GAP = 8, 4, 64
"""Tokens from one audit to the next: at the beginning of an answer, at least, and at most."""
SURPRISE = 3.0
"""An audit that loses so many times what may be lost halves the gap,"""
CALM = 3
"""and so many in a row that do not double it."""
QUARTERS, RUN = 4, 16
"""An answer's audits look at so many of each `QUARTERS` times as many neighbours, besides the chosen ones."""


@dataclass(frozen=True)
class Audit:
    """What one token has shown of a layer."""

    position: int
    scores: F32
    """(7,): at each, as a cut-off, the token loses so many times what may be lost (`LEVELS`)."""
    gap: int
    """Tokens to the next audit."""
    calm: int
    """Audits in a row, this one included, that were no surprise."""


class Cutoff:
    """One layer's cut-off in one sequence; `kept` 0: it stays where the plan has it."""

    def __init__(self, start: float, kept: float = 0.0, layer: int = 0) -> None:
        self.start, self.kept, self.layer = start, kept, layer
        self.audits: list[Audit] = []
        self._value: float | None = None  # until there is another audit

    def copy(self) -> "Cutoff":
        """The same past, a future of its own."""
        copy = Cutoff(self.start, self.kept, self.layer)
        copy.audits = list(self.audits)
        return copy

    @property
    def value(self) -> float:
        """A neuron is computed where its score is at least this."""
        if self._value is not None:
            return self._value
        if not self.audits:
            return self.start
        recent, last = self.audits[-MEMORY:], self.audits[-1].position
        weights = np.array([2.0 ** ((audit.position - last) / HALF_LIFE) for audit in recent])
        total = float(weights.sum())
        scores = np.array([audit.scores for audit in recent], np.float64)
        low, high = float(scores.min()), float(scores.max())
        for _ in range(30):
            middle = (low + high) / 2
            lost = np.array([np.interp(middle, of_token, LEVELS, left=0.0) for of_token in scores])
            if weights @ lost > total:
                high = middle
            else:
                low = middle
        start = START_WEIGHT * 2.0 ** (-last / HALF_LIFE)
        self._value = (total * low + start * self.start) / (total + start)
        return self._value

    def due(self, position: int, lossless: bool) -> bool:
        """Whether the token there is audited. In a prompt, where all neurons are computed anyway, some are.

        A sequence's first 8 tokens are unlike all that follow.
        """
        if self.kept <= 0 or position < 8:
            return False
        if lossless:
            return position % 16 == 15 or (position < 128 and position % 8 == 7)
        gap = self.audits[-1].gap if self.audits else FIRST_GAP
        return (position + 7 * self.layer) % gap == 0

    def looked_at(self, neurons: int) -> NDArray[np.bool_]:
        """(F,): those that the next audit computes besides the chosen ones."""
        looked: NDArray[np.bool_] = np.arange(neurons) // RUN % QUARTERS == len(self.audits) % QUARTERS
        return looked

    def learn(self, position: int, scores: F32, h: F32, lossless: bool) -> float:
        """An audit: all neurons' scores (F,) and values (F,) for the token at `position`.

        In an answer only values of chosen neurons and of those `looked_at` are read. Returns the share of the
        activation that the cut-off has kept: in a prompt, all.
        """
        share = np.abs(h).astype(np.float64)
        chosen = np.full(h.shape, lossless) | (scores >= np.float32(self.value))
        share[~chosen] *= QUARTERS * self.looked_at(len(h))[~chosen]
        total = float(share.sum())
        if total <= 0:
            return 1.0
        kept, gap, calm = 1.0, FIRST_GAP, 0
        if not lossless:
            kept = float(share[chosen].sum()) / total
            gap, calm = (self.audits[-1].gap, self.audits[-1].calm) if self.audits else (FIRST_GAP, 0)
            if 1 - kept > SURPRISE * (1 - self.kept):
                gap, calm = max(LEAST_GAP, gap // 2), 0
            else:
                calm += 1
                if calm % CALM == 0:
                    gap = min(MOST_GAP, 2 * gap)
        fires = share > 0
        order = np.argsort(scores[fires], kind="stable")
        lost = np.cumsum(share[fires][order]) / total
        at = np.searchsorted(lost, (1 - self.kept) * LEVELS, side="right")
        points = scores[fires][order][np.minimum(at, len(order) - 1)]
        self.audits.append(Audit(position, points, gap, calm))
        self._value = None
        return kept

    def rewind(self, length: int) -> None:
        """Forget what positions from `length` on have shown."""
        while self.audits and self.audits[-1].position >= length:
            self.audits.pop()
            self._value = None
