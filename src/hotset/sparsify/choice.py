"""What a choice of neurons costs: bytes by arithmetic, milliseconds by measurement; and the cheapest."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32, FFN, Linear, NeuronFFNSpec
from hotset.core.config import FFNPlan, Score, Way
from hotset.model.reading import COPY_BITS

GATHERED = 0.7
"""Share of the streaming bandwidth at which scattered rows are taken to be read, before anything is timed.
Measured on AVX2: 0.4 to 0.85 for rows of 4 bits, 0.55 to 0.9 for 8 bits, 0.65 to 0.9 for F16."""
NEVER_SLOWER = 0.97
"""A layer leaves its dense FFN only for at most this share of the time."""
_ROUNDS = 24

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A way for one layer to choose neurons, and what it was found to do on held-out tokens."""

    plan: FFNPlan
    fc: tuple[Linear, ...] = ()
    """A low-rank score's matrices (r, D) and (F, r), as they are stored."""
    predictor_bytes: int = 0
    recall: float = 1.0
    """Of the neurons that fire, the share chosen."""
    precision: float = 1.0
    """Of the chosen neurons, the share that fires."""
    kept: float = 1.0
    """Share of the activation kept, as `hotset.sparsify.predictor` defines it."""
    chosen: float = 1.0
    """Share of the neurons chosen. Of the others no row is read; by `exact`, only the gate's."""
    read: float = 1.0
    """Share of the neurons whose row of down is read."""
    ms: float = 0.0
    """Time of the layer's FFN for one token."""
    kl: float | None = None
    """Mean KL from the dense model where only this layer chooses so, in nats; None: not tried."""

    @property
    def name(self) -> str:
        """The score's name, or the way's."""
        return self.plan.score.value if self.plan.score else self.plan.way.value

    @property
    def rank(self) -> int:
        """Of a low-rank score, otherwise 0."""
        return self.fc[0].weight.shape[0] if self.fc else 0


def predictor_bytes(spec: NeuronFFNSpec) -> int:
    """Bytes of predictor that a token reads under the spec's plan."""
    if spec.plan.score in COPY_BITS:
        rows, cols = (spec.gate or spec.up).weight.shape
        return int(rows * cols * COPY_BITS[spec.plan.score] / 8)
    return sum(linear.weight.nbytes for linear in spec.predictor)


def ffn_bytes(spec: NeuronFFNSpec) -> int:
    """Bytes of gate, up and down."""
    return sum(linear.weight.nbytes for linear in (spec.gate, spec.up, spec.down_t) if linear)


def effective_bytes(spec: NeuronFFNSpec, chosen: float, read: float) -> float:
    """Bytes that a token reads, scattered ones counted `1 / GATHERED` times.

    ``chosen`` is the share of neurons chosen, ``read`` the share whose row of down is read, which is less
    where a chosen neuron's gate turns out to be zero. Streaming this many bytes takes as long.
    """
    gate = spec.gate.weight.nbytes if spec.gate else 0
    up, down = spec.up.weight.nbytes, spec.down_t.weight.nbytes
    first, second = (gate, up + down) if spec.gate else (up, down)
    plan = spec.plan
    if plan.way is Way.DENSE:
        return first + second
    if plan.way is Way.PREDICTOR:
        return predictor_bytes(spec) + (first * chosen + second * read) / GATHERED
    if plan.score is Score.DOWN:
        return gate + up + down * read / GATHERED
    return first + second * read / GATHERED


def measure_ms(
    ffns: Sequence[FFN],
    others: Sequence[FFN],
    inputs: Sequence[F32],
    done: Callable[[int, int], None] | None = None,
) -> tuple[F64, F64]:
    """Milliseconds for one token of each layer's FFN and of its rival, medians over tokens.

    ``inputs[layer]`` (N, D) are what the layer reads. Layers follow one another as in decoding, so that one
    pushes another out of the caches; the two models take turns, so that both meet the same machine.
    """
    times = np.empty((2, _ROUNDS, len(ffns)))
    for i in range(_ROUNDS):
        for model, parts in enumerate((ffns, others)):
            for layer, (ffn, rows) in enumerate(zip(parts, inputs, strict=True)):
                x = np.ascontiguousarray(rows[i * 7919 % len(rows)][None])
                out = np.zeros_like(x)
                start = time.perf_counter()
                ffn.forward(x, out, None)
                times[model, i, layer] = time.perf_counter() - start
        if done:
            done(i + 1, _ROUNDS)
    first, second = np.median(times, axis=1) * 1e3
    return first, second


def choose(choices: Sequence[Choice], target: float, dense_ms: float) -> Choice | None:
    """The fastest choice that keeps the target; None where none is clearly faster than the dense FFN."""
    good = [choice for choice in choices if choice.kept >= target]
    best = min(good, key=lambda choice: choice.ms, default=None)
    return best if best and best.ms <= NEVER_SLOWER * dense_ms else None
