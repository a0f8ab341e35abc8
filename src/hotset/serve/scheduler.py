"""What the next batch computes: a pure function of what the sequences want and of how fast rows are.

Whoever is answering gets its next token in every step; prompts share what time is left, one after the other::

    step 1   a b c  PPPPPPPPPPPPPPPPPP     a, b, c: one row each of three answers
    step 2   a b c  QQQQQQQQQQQQQQQQQQ     P, Q: rows of two prompts, as many as the time allows
    step 3   a b c  PPPPPPP QQQQQQQQQQ     P's last rows leave room for more of Q
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ALONE_ROWS = 512
"""Rows of prompts in a step in which nobody waits for a next token."""

_FIRST_ROWS = 16
"""Rows of prompts beside answers before any speed is known."""

_STEADY_ROWS = 8
"""Steps of fewer rows take much the same time, that of reading the weights; they tell nothing of a row's."""


class Want(NamedTuple):
    """The rows that one sequence has still to compute before its next token."""

    rows: int
    prompt: bool
    """Whether they may wait: a prompt, or an answer that is read again after it had to make room."""


def schedule(wants: Sequence[Want], *, prompt_rows: int, most_rows: int) -> list[int]:
    """Rows of each want in the next batch, 0 for those that wait.

    `wants` are ordered by when they last had rows, longest ago first. Rows that may not wait come first, then
    prompts with at most `prompt_rows` in all, together at most `most_rows`.
    """
    taken = [0] * len(wants)
    room = most_rows
    for i, want in enumerate(wants):
        if not want.prompt:
            taken[i] = min(want.rows, room)
            room -= taken[i]
    room = min(room, prompt_rows)
    for i, want in enumerate(wants):
        if want.prompt:
            taken[i] = min(want.rows, room)
            room -= taken[i]
    return taken


@dataclass
class Pace:
    """How fast steps have been, and from that how many rows of prompts one may hold."""

    token: float | None = None
    """Seconds of a step without prompts."""
    row: float | None = None
    """Seconds a row of a step with prompts."""

    def observe(self, answers: int, prompts: int, seconds: float) -> None:
        """Learn from a step of so many rows of answers and of prompts."""
        if not prompts:
            self.token = _mean(self.token, seconds)
        elif answers + prompts >= _STEADY_ROWS:
            self.row = _mean(self.row, seconds / (answers + prompts))

    def prompt_rows(self, answers: int, spent: float = 0.0) -> int:
        """Rows of prompts for a step with so many rows of answers, 1 or more; `spent` seconds are over.

        Such a step may take twice what it takes without prompts and 0.15 s more. Speeds of few rows are lower
        than those of many, so what is learnt from a short step does not make the next one too long.
        """
        if not answers:
            return ALONE_ROWS
        if self.row is None:
            return _FIRST_ROWS
        seconds = 2 * (self.token or 0.0) + 0.15 - spent
        return max(1, min(ALONE_ROWS, int(seconds / self.row) - answers))


def _mean(before: float | None, now: float) -> float:
    return now if before is None else (before + now) / 2
