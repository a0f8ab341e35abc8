"""From logits to the next token. Knows nothing of models, text or requests.

The order of operations, on a copy of the raw logits:

1. ``logit_bias`` is added; tokens that the model's files forbid have no chance;
2. ``repetition_penalty`` divides positive and multiplies negative logits of every token in the prompt or the
   answer (CTRL, arXiv 1909.05858);
3. ``presence_penalty`` is subtracted from every token already in the answer, and ``frequency_penalty`` as
   many times as it is there (as in OpenAI's API); tokens that a constraint forbids have no chance;
4. a ``temperature`` of 0 takes the largest logit and stops here; any other divides the logits;
5. ``top_k``, ``top_p`` (arXiv 1904.09751) and ``min_p`` (arXiv 2407.01082) narrow the choice, each what the
   one before it left, and one token is drawn in proportion to its probability.

Log-probabilities are those of the raw logits, before step 1.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import RequestError
from hotset.serve.arguments import check_integer, shown

_F32 = NDArray[np.float32]
_I64 = NDArray[np.int64]

_MOST_BIAS, _MOST_PENALTY = 1e30, 1e6
"""More counts as this: it is farther than logits reach, and all sums and products stay finite in 32 bits."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are greedy. Any value out of range is a `RequestError`."""

    temperature: float = 0.0
    """0: always the most likely token."""
    top_k: int = 0
    """Choose among the k most likely tokens; 0: among all."""
    top_p: float = 1.0
    """Choose among the fewest most likely tokens whose probabilities add up to this."""
    min_p: float = 0.0
    """Choose among tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Over 1 makes tokens of the prompt and the answer less likely."""
    presence_penalty: float = 0.0
    """Over 0 makes tokens of the answer less likely."""
    frequency_penalty: float = 0.0
    """Over 0 makes tokens of the answer less likely, the more often they are there."""
    seed: int | None = None
    """Makes the draws repeatable; None: different every time."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    logprobs: int | None = None
    """Give each token's log-probability and those of this many most likely tokens; None: give none."""

    def __post_init__(self) -> None:
        """Check every value."""
        _check_number("temperature", self.temperature, 0)
        check_integer("top_k", self.top_k, 0)
        _check_number("top_p", self.top_p, 0, 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("repetition_penalty", self.repetition_penalty)
        if self.repetition_penalty <= 0:
            raise RequestError(f"repetition_penalty is {self.repetition_penalty}: expected a number over 0")
        _check_number("presence_penalty", self.presence_penalty)
        _check_number("frequency_penalty", self.frequency_penalty)
        check_integer("seed", self.seed, 0, optional=True)
        check_integer("logprobs", self.logprobs, 0, optional=True)
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {self.logit_bias!r}: expected token ids with a number each")
        for token, bias in self.logit_bias.items():
            check_integer("a token id in logit_bias", token, 0)
            _check_number(f"logit_bias of token {token}", bias)


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities under the raw logits."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the most likely tokens, most likely first."""


class Sampler:
    """One request's choice of tokens: its random numbers and the tokens it has seen."""

    def __init__(
        self, sampling: Sampling, vocab_size: int, prompt: Iterable[int] = (), never: Iterable[int] = ()
    ) -> None:
        """`never` has tokens that are not to be chosen, whatever their bias."""
        for token in sampling.logit_bias:
            if token >= vocab_size:
                raise RequestError(f"logit_bias names token {token}: the vocabulary has {vocab_size} tokens")
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)
        biases = {token: _bounded(bias, _MOST_BIAS) for token, bias in sampling.logit_bias.items()}
        biases |= dict.fromkeys(never, -math.inf)
        self._bias_ids = np.fromiter(biases.keys(), np.int64)
        self._bias = np.fromiter(biases.values(), np.float32)
        self._repetition = max(_bounded(sampling.repetition_penalty), 1 / _MOST_PENALTY)
        self._presence = _bounded(sampling.presence_penalty)
        self._frequency = _bounded(sampling.frequency_penalty)
        self._repeated = _IdSet(vocab_size) if sampling.repetition_penalty != 1 else None
        self._present = _IdSet(vocab_size) if sampling.presence_penalty != 0 else None
        self._counts = np.zeros(vocab_size, np.float32) if sampling.frequency_penalty != 0 else None
        if self._repeated:
            self._repeated.add(prompt)

    def sample(self, logits: _F32, allowed: NDArray[np.bool_] | None = None) -> int:
        """Choose a token, one of those `allowed` (V,), from raw logits (V,), which are left as they are."""
        logits = self._penalised(logits)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        token = int(logits.argmax()) if self._sampling.temperature == 0 else self._draw(logits)
        for ids in (self._repeated, self._present):
            if ids:
                ids.add((token,))
        if self._counts is not None:
            self._counts[token] += 1
        return token

    def _penalised(self, logits: _F32) -> _F32:
        """Steps 1 to 3; the array itself when there is nothing to do."""
        if not (len(self._bias) or self._repeated or self._present) and self._counts is None:
            return logits
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if self._repeated:
            ids, penalty = self._repeated.ids, self._repetition
            seen = logits[ids]
            logits[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._present:
            logits[self._present.ids] -= self._presence
        if self._counts is not None:
            logits -= self._frequency * self._counts
        return logits

    def _draw(self, logits: _F32) -> int:
        """Steps 4 and 5."""
        sampling = self._sampling
        kept: _I64 | None = None  # the tokens still in the choice; None: all
        scale = np.float32(min(1 / sampling.temperature, 1e30))
        with np.errstate(over="ignore", under="ignore"):
            weights = logits - logits.max()
            if 0 < sampling.top_k < len(weights):
                kept = np.argpartition(weights, -sampling.top_k)[-sampling.top_k :]
                weights = weights[kept]
            weights *= scale
            np.exp(weights, out=weights)  # probabilities in units of the largest, which is 1
        if sampling.top_p < 1:
            nucleus = _nucleus(weights, sampling.top_p)
            weights, kept = weights[nucleus], nucleus if kept is None else kept[nucleus]
        if sampling.min_p > 0:
            likely = np.flatnonzero(weights >= np.float32(sampling.min_p))
            weights, kept = weights[likely], likely if kept is None else kept[likely]
        index = _draw_index(weights, self._rng.random())
        return index if kept is None else int(kept[index])


def logprobs(logits: _F32, chosen: int, top: int) -> Logprobs:
    """Log-probabilities of token `chosen` and of the `top` most likely tokens, from raw logits (V,)."""
    largest = logits.max()
    normaliser = float(largest) + math.log(float(np.exp(logits - largest).sum(dtype=np.float64)))
    top = min(top, len(logits))
    best = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    return Logprobs(
        float(logits[chosen]) - normaliser,
        tuple((int(token), float(logits[token]) - normaliser) for token in best),
    )


class _IdSet:
    """A growing set of token ids that is read as an array."""

    def __init__(self, vocab_size: int) -> None:
        self._known: set[int] = set()
        self._ids = np.empty(vocab_size, np.int64)

    @property
    def ids(self) -> _I64:
        """The ids, each once."""
        return self._ids[: len(self._known)]

    def add(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            if token not in self._known:
                self._ids[len(self._known)] = token
                self._known.add(token)


def _nucleus(weights: _F32, top_p: float) -> _I64:
    """Indices of the fewest largest weights that add up to `top_p` of the sum, and of ties with the last."""
    total = float(weights.sum(dtype=np.float64))
    # Weights under this floor add up to less than 1 - top_p of the sum, so none is needed: sort the rest.
    ordered = np.sort(weights[weights >= (1 - top_p) * total / len(weights)])[::-1]
    sums = np.cumsum(ordered, dtype=np.float64)
    least = ordered[min(int(np.searchsorted(sums, top_p * total)), len(ordered) - 1)]
    return np.flatnonzero(weights >= least)


def _draw_index(weights: _F32, uniform: float) -> int:
    """The index at share `uniform` in [0, 1) of the weights' running sum.

    Sums blocks first and then runs through one: a running sum over a whole vocabulary takes milliseconds.
    """
    block = 512
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), block)), dtype=np.float64)
    target = uniform * sums[-1]
    start = int(np.searchsorted(sums, target, side="right"))
    before = sums[start - 1] if start else 0.0
    within = np.cumsum(weights[start * block : (start + 1) * block], dtype=np.float64)
    # Rounding can put the target at the block's very end: the last token that has any weight is meant.
    index = int(np.searchsorted(within, min(target - before, np.nextafter(within[-1], 0)), side="right"))
    return start * block + index


def _bounded(value: float, most: float = _MOST_PENALTY) -> float:
    return min(max(value, -most), most)


def _check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if is_number and abs(value) <= sys.float_info.max and low <= value <= high:
        return
    if math.isfinite(high):
        expected = f"a number from {low:g} to {high:g}"
    else:
        expected = f"a number of {low:g} or more" if math.isfinite(low) else "a finite number"
    raise RequestError(f"{name} is {shown(value)}: expected {expected}")
