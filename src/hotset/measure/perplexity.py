"""How well a model predicts a text, and how far it is from another model.

The text is cut into windows, each read on its own from an empty context. As in llama.cpp's ``perplexity``
tool, the first token of a window is the beginning-of-text token if the model's texts start with one, and only
the predictions in the window's second half count, since the first have little to go by. Perplexities compare
between models of one vocabulary.

A model that chooses its neurons does so in decoding only: it reads a window's first half as a prompt, with
all neurons, and the second half token by token. In windows of less than twice `SINK_TOKENS` some or all of
these are first positions, where no approximation is used.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32
from hotset.backends.maths import log_softmax
from hotset.core.batch import Batch
from hotset.core.batch import Sequence as State
from hotset.core.errors import HotsetError, RequestError
from hotset.serve.loaded import Model

DEFAULT_WINDOW = 512
_MOST_NATS = 700.0
"""Whose exponential a number still holds."""
_LOGITS_AT_ONCE = 1 << 23
"""Numbers of logits held at a time, a few tens of megabytes."""


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from a reference's, over the same tokens."""

    reference_perplexity: float
    kl_mean: float
    """Mean of KL(reference || model), in nats."""
    kl_max: float
    top1_agreement: float
    """Share of the predictions in which both find the same token most likely."""
    greedy_tokens: int
    """Tokens of greedy text that both wrote after the first window's first half."""
    greedy_same: int
    """Of these, how many were the same up to the first that differs."""


@dataclass(frozen=True)
class Evaluation:
    """What a model made of a text."""

    tokens: int
    """Predictions counted."""
    window: int
    perplexity: float
    """exp of the mean negative log-likelihood of the text's tokens."""
    density: float | None = None
    """Share of neurons whose row of down was read, where the model chooses."""
    divergence: Divergence | None = None


def tokenize(text: str, model: Model, against: Model | None = None, limit: int | None = None) -> list[int]:
    """The text's first `limit` token ids; `RequestError` if `against` has another vocabulary."""
    ids = list(model.tokenizer.encode(text, parse_special=False))
    if against is not None:
        sizes = model.config.vocab_size, against.config.vocab_size
        if sizes[0] != sizes[1] or ids != list(against.tokenizer.encode(text, parse_special=False)):
            raise RequestError(
                f"{against.path} has another vocabulary than {model.path} ({sizes[1]} and {sizes[0]} "
                "tokens): compare models with the same tokenizer"
            )
    return ids[:limit]


def evaluate(
    model: Model,
    ids: Sequence[int],
    *,
    against: Model | None = None,
    window: int | None = None,
    kv_type: str = "f16",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Perplexity of token ids, and with `against` the divergence from that reference model.

    `window` is in tokens; None means 512, or less for a short text or context. `progress(done, total)` counts
    tokens. Raises `RequestError` for a text shorter than a window, or one that a model has no context for.
    """
    models = [model] if against is None else [model, against]
    if window is None:
        window = min(DEFAULT_WINDOW, len(ids), *(m.config.context_length for m in models))
    least = max(window, 4)
    if len(ids) < least:
        raise RequestError(f"the text has {len(ids)} tokens: expected at least one window of {least}")
    if window < 4:
        raise RequestError(f"the window is {window} tokens: expected 4 or more (--context)")
    opening = [
        token for token in model.tokenizer.encode("", add_special=True) if token == model.tokenizer.bos_id
    ]
    states = [m.sequence(window, kv_type) for m in models]
    step = min(tokens_at_once(m) for m in models)  # a reference keeps the same step
    before = neurons_read(model, states[0])
    starts = range(0, len(ids) - window + 1, window)
    log_likelihoods: list[NDArray[np.float64]] = []
    reference_log_likelihoods: list[NDArray[np.float64]] = []
    divergences: list[NDArray[np.float64]] = []
    agreements: list[NDArray[np.bool_]] = []
    for count, start in enumerate(starts):
        tokens = np.array(ids[start : start + window], np.int32)
        if opening:
            tokens[0] = opening[0]
        for state in states:
            state.rewind(0)
        readers = zip(models, states, strict=True)
        pairs = zip(*(predictions(m, state, tokens, window // 2, step) for m, state in readers), strict=True)
        for (targets, logs), *reference in pairs:
            rows = np.arange(len(targets))
            log_likelihoods.append(logs[rows, targets].astype(np.float64))
            for _, reference_logs in reference:
                reference_log_likelihoods.append(reference_logs[rows, targets].astype(np.float64))
                divergences.append(
                    (np.exp(reference_logs) * (reference_logs - logs)).sum(axis=1, dtype=np.float64)
                )
                agreements.append(reference_logs.argmax(axis=1) == logs.argmax(axis=1))
        if progress:
            progress((count + 1) * window, len(starts) * window)
    read, of = (now - then for now, then in zip(neurons_read(model, states[0]), before, strict=True))
    divergence = None
    if against is not None:
        kl = np.concatenate(divergences)
        readers = zip(models, states, strict=True)
        texts = [_greedy(m, state, ids[: window // 2], window // 2) for m, state in readers]
        same = [a == b for a, b in zip(*texts, strict=True)]
        divergence = Divergence(
            _perplexity(reference_log_likelihoods),
            float(kl.mean()),
            float(kl.max()),
            float(np.concatenate(agreements).mean()),
            len(same),
            [*same, False].index(False),
        )
    return Evaluation(
        sum(map(len, log_likelihoods)),
        window,
        _perplexity(log_likelihoods),
        read / of if of else None,
        divergence,
    )


def neurons_read(model: Model, state: State) -> tuple[int, int]:
    """Neurons whose row of down was read in decoding so far, and neurons that there were to read."""
    if not model.chooses_neurons:
        return 0, 0
    counts = [work for work in model.work(state) if work]
    return sum(c.read for c in counts), sum(c.rows for c in counts) * model.config.computed_neurons


def _greedy(model: Model, state: State, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest `count` tokens, one after the other, that follow the prompt."""
    state.rewind(0)
    tokens = np.array(prompt, np.int32)
    text: list[int] = []
    while len(text) < count:
        logits = model.transformer.forward(Batch.of(state, tokens, lossless=not text))
        tokens = logits.argmax(axis=1).astype(np.int32)
        text.append(int(tokens[0]))
    return text


def _perplexity(log_likelihoods: list[NDArray[np.float64]]) -> float:
    nats = -float(np.concatenate(log_likelihoods).mean())
    if nats > _MOST_NATS:
        raise HotsetError(
            f"the model's predictions are off by {nats:.3g} nats a token: no perplexity to tell"
        )
    return math.exp(nats)


def tokens_at_once(model: Model) -> int:
    """Tokens that are predicted in one call: what chooses neurons does so for single tokens only."""
    return 1 if model.chooses_neurons else max(1, _LOGITS_AT_ONCE // model.config.vocab_size)


def predictions(
    model: Model, state: State, tokens: NDArray[np.int32], first: int, step: int
) -> Iterator[tuple[NDArray[np.int32], F32]]:
    """What follows token `first` and each one after it, `step` at a time.

    Yields the tokens to predict (T,), and the log-probabilities of all (T, V). `state` holds some or none of
    the tokens before `first`; the others are read as a prompt.
    """
    if state.length < first:
        unread = tokens[state.length : first]
        model.transformer.forward(Batch.of(state, unread, lossless=True, logits=0))
    for start in range(first, len(tokens) - 1, step):
        stop = min(start + step, len(tokens) - 1)
        logits = model.transformer.forward(Batch.of(state, tokens[start:stop], logits=None))
        yield tokens[start + 1 : stop + 1], log_softmax(logits)
