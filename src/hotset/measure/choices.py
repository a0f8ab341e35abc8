"""Multiple-choice questions: does the model find the right answer the likeliest?

Scored as EleutherAI's lm-evaluation-harness defines it. A choice follows the query after a space, and counts
by the sum of its tokens' log-probabilities. Query and choice are tokenised together, and what follows the
query's own number of tokens is the choice. `acc` takes that sum, `acc_norm` divides it by the choice's
characters, `acc_bytes` by its bytes in UTF-8.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.core.batch import Sequence as State
from hotset.core.errors import RequestError
from hotset.measure.perplexity import neurons_read, predictions, tokens_at_once
from hotset.serve.arguments import shown
from hotset.serve.loaded import Model
from hotset.tokenizer import Tokenizer

_FIELDS = "query, choices and gold"
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
"""A surrogate alone, which JSON can write and Unicode text cannot have."""


@dataclass(frozen=True)
class Question:
    """One item of a task."""

    query: str
    choices: tuple[str, ...]
    """Two or more."""
    gold: int
    """Which choice is right, from 0."""


@dataclass(frozen=True)
class Scores:
    """What a model made of a task."""

    log_likelihoods: tuple[NDArray[np.float64], ...]
    """For each question: of its choices, in nats."""
    acc: float
    acc_norm: float
    acc_bytes: float
    density: float | None = None
    """Share of neurons whose row of down was read, where the model chooses."""

    def error(self, accuracy: float) -> float:
        """Standard error of a mean over the questions; 0 for a single one."""
        return math.sqrt(accuracy * (1 - accuracy) / max(len(self.log_likelihoods) - 1, 1))

    def same_choice(self, other: "Scores") -> float:
        """Share of the questions in which both find the same choice the likeliest."""
        pairs = zip(self.log_likelihoods, other.log_likelihoods, strict=True)
        return float(np.mean([a.argmax() == b.argmax() for a, b in pairs]))


def read_questions(text: str, name: str) -> list[Question]:
    """The questions of a JSONL file, one a line: ``{"query": "…", "choices": ["…", "…"], "gold": 0}``.

    Other fields and empty lines are passed over. Raises `RequestError`, which calls the file `name`.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RequestError(f"{name} is empty: expected a question a line, a JSON object of {_FIELDS}")
    return [_question(line, f"{name}, line {number}") for number, line in lines]


def _question(line: str, where: str) -> Question:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is no JSON: {error}") from None
    if not isinstance(item, dict) or not {"query", "choices", "gold"} <= item.keys():
        raise RequestError(f"{where}: expected a JSON object of {_FIELDS}, found {line.strip()[:60]}")
    query, choices, gold = item["query"], item["choices"], item["gold"]
    if not _is_text(query):
        raise RequestError(f"{where}: query is {shown(query)}: expected Unicode text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(_is_text, choices)):
        raise RequestError(f"{where}: choices is {shown(choices)}: expected a list of two texts or more")
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise RequestError(
            f"{where}: gold is {shown(gold)}: expected the right choice, 0 to {len(choices) - 1}"
        )
    return Question(query, tuple(choices), gold)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _HALF_A_PAIR.search(value)


def tokenize(tokenizer: Tokenizer, query: str, choice: str) -> tuple[list[int], list[int]]:
    """Token ids of a query, without white space at its end, and of a choice that follows it."""
    stripped = query.rstrip()
    before = list(tokenizer.encode(stripped))
    return before, list(tokenizer.encode(f"{query} {choice}"))[len(before) :]


def score(
    model: Model,
    questions: Sequence[Question],
    *,
    context: int | None = None,
    kv_type: str = "f16",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Answer questions. A model that chooses its neurons does so in the choices, and reads queries with all.

    `context` is in tokens; `progress(done, total)` counts questions. Raises `RequestError` for a question
    that is longer than the context, or in which no token is the choice's alone.
    """
    state = model.sequence(context, kv_type)
    step = tokens_at_once(model)
    pairs = [[tokenize(model.tokenizer, q.query, choice) for choice in q.choices] for q in questions]
    for question, encoded in zip(questions, pairs, strict=True):
        _check(question, encoded, state.capacity)
    before = neurons_read(model, state)
    found = []
    for number, encoded in enumerate(pairs, 1):
        state.rewind(0)
        sums = []
        for query, choice in encoded:
            first = len(query) - 1
            state.rewind(state.reusable(min(first, state.length)))
            sums.append(_log_likelihood(model, state, query + choice, first, step))
        found.append(np.array(sums))
        if progress:
            progress(number, len(questions))
    read, of = (now - then for now, then in zip(neurons_read(model, state), before, strict=True))
    return Scores(
        tuple(found),
        _accuracy(questions, found, lambda choice: 1),
        _accuracy(questions, found, len),
        _accuracy(questions, found, lambda choice: len(choice.encode())),
        read / of if of else None,
    )


def _check(question: Question, encoded: list[tuple[list[int], list[int]]], room: int) -> None:
    for choice, (before, after) in zip(question.choices, encoded, strict=True):
        if not after:
            raise RequestError(
                f"{choice!r} adds no token to {question.query[-40:]!r}: expected a choice that follows it"
            )
        if len(before) + len(after) - 1 > room:  # the last token is only predicted
            raise RequestError(
                f"{question.query[:40]!r} and {choice[:40]!r} have {len(before) + len(after)} tokens: "
                f"expected at most {room + 1} (--context)"
            )


def _log_likelihood(model: Model, state: State, tokens: list[int], first: int, step: int) -> float:
    """Sum of the log-probabilities of the tokens after `first`."""
    pieces = predictions(model, state, np.array(tokens, np.int32), first, step)
    return sum(
        float(logs[np.arange(len(targets)), targets].sum(dtype=np.float64)) for targets, logs in pieces
    )


def _accuracy(
    questions: Sequence[Question], found: list[NDArray[np.float64]], length: Callable[[str], int]
) -> float:
    """Share of the questions whose right choice has the largest log-likelihood for its length."""
    right = [
        int((sums / [length(choice) for choice in question.choices]).argmax()) == question.gold
        for question, sums in zip(questions, found, strict=True)
    ]
    return float(np.mean(right))
