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

_FIRST_ROWS = 12
"""Rows of prompts beside answers before any speed is known."""

_COSTS = (0.0, 0.6, 0.7, 0.8, 1.15, 1.25, 1.4, 1.5, 1.75, 1.75, 1.75, 1.75, 2.1, 2.2, 2.3, 2.4)
"""What a step of 1, 2, 3 … rows takes more than one of one row, as a share of that (docs/log/2026-11.md)."""

FEW_ROWS = 8
"""Rows of a step, with those of drafts, where several answer: others wait no longer than for a full batch."""


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


def share(chances: Sequence[Sequence[float]], cost_ratio: float = 1.0) -> list[int]:
    """How many tokens of each answer's draft to verify, so that a step gives the most tokens a second.

    `chances` has, for each answer, how likely the first, the first two … tokens of its draft are all right.
    More rows take `cost_ratio` times as long as they usually do (`Pace`).
    """
    answers = len(chances)
    if not any(chances) or answers >= FEW_ROWS:
        return [0] * answers
    # The likeliest first: of one draft that is the order of its tokens.
    most_rows = len(_COSTS) if answers == 1 else FEW_ROWS
    drafts = sorted((-chance, i) for i, of_answer in enumerate(chances) for chance in of_answer)
    tokens = float(answers)
    best, most = 0, tokens / (1 + cost_ratio * _COSTS[answers - 1])
    for count, (chance, _) in enumerate(drafts[: most_rows - answers], 1):
        tokens -= chance
        rate = tokens / (1 + cost_ratio * _COSTS[answers + count - 1])
        if rate > most:
            best, most = count, rate
    counts = [0] * answers
    for _, i in drafts[:best]:
        counts[i] += 1
    return counts


@dataclass
class Pace:
    """How fast steps have been, and from that how many rows of prompts one may hold."""

    token: float | None = None
    """Seconds of a step without prompts."""
    row: float | None = None
    """Seconds a row of a step with prompts, rather too many: it rises at once and falls slowly."""
    single: float | None = None
    """Seconds of a step of one row."""
    cost_ratio: float = 1.0
    """By how much a step of a few rows takes longer than that, as a share of what it usually does."""

    def observe(self, answers: int, prompts: int, seconds: float) -> None:
        """Learn from a step of so many rows of answers and of prompts."""
        if not prompts:
            self.token = _mean(self.token, seconds)
            if answers == 1:
                self.single = _mean(self.single, seconds, 8)
                self.cost_ratio = _mean(self.cost_ratio, 1.0, 64)  # what took long once is tried again
            elif self.single and answers <= len(_COSTS):
                cost_ratio = (seconds / self.single - 1) / _COSTS[answers - 1]
                self.cost_ratio = _mean(self.cost_ratio, min(max(cost_ratio, 0.0), 4.0), 8)
            return
        rows = answers + prompts
        row = seconds / max(rows, FEW_ROWS)  # fewer take the time of reading the weights
        if self.row is None:
            self.row = row if rows > FEW_ROWS else None
        else:
            # Kernels of few rows may be some times faster, so they say little of a longer step.
            falls = rows > FEW_ROWS or row < self.row / 3
            self.row = min(max(row, _mean(self.row, row, 8) if falls else self.row), 2 * self.row)

    def prompt_rows(self, answers: int, spent: float = 0.0) -> int:
        """Rows of prompts for a step with so many rows of answers, 1 or more; `spent` seconds are over.

        Such a step may take twice what it takes without prompts and 0.15 s more.
        """
        if not answers:
            return ALONE_ROWS
        if self.row is None:
            return _FIRST_ROWS
        seconds = 2 * (self.token or 0.0) + 0.15 - spent
        return max(1, min(ALONE_ROWS, int(seconds / self.row) - answers))


def _mean(before: float | None, now: float, slow: int = 2) -> float:
    return now if before is None else before + (now - before) / slow
