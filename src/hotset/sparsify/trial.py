"""Tries a choice of neurons on a running model, whole passages at a time.

`NeuronFFN` chooses neurons in decoding only, a token at a time. Here the second half of each window is read
in one go, and the neurons that a plan would not have computed are forgotten: the same maths as decoding after
a dense prompt, many times as fast. (In windows of 16 tokens or more: the first positions, `SINK_TOKENS`, are
dense in decoding too.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32, FFN, BatchView, NeuronFFNSpec
from hotset.backends.maths import chosen_neurons, log_softmax, normalise, predictor_matrices
from hotset.core.batch import Batch
from hotset.core.batch import Sequence as State
from hotset.model.finite import is_finite
from hotset.model.transformer import Transformer

_LOGITS_AT_ONCE = 1 << 24
"""Numbers of logits held at a time."""


class TrialFFN:
    """An FFN that forgets the neurons below its plan's cut-off, for any number of tokens.

    ``ffn`` computes the neurons' values; ``spec`` says the rest. ``cutoff`` and the share of neurons kept so
    far (``density``) are its state.
    """

    def __init__(self, ffn: FFN, spec: NeuronFFNSpec, down_t: F32 | None = None) -> None:
        self.ffn, self.spec = ffn, spec
        self.cutoff = spec.plan.cutoff
        self.down_t = spec.down_t.weight.to_float32() if down_t is None else down_t
        self._lengths = np.linalg.norm(self.down_t, axis=1)
        self._matrices = predictor_matrices(spec)
        self._seen = self._kept = 0

    @property
    def density(self) -> float:
        """Share of the neurons chosen since the FFN was built."""
        return self._kept / self._seen if self._seen else 1.0

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        self.ffn.neurons(x, gate, h)

    def forward(self, x: F32, out: F32, view: BatchView = None) -> None:
        spec = self.spec
        gate = np.empty((len(x), len(self.down_t)), np.float32)
        h = np.empty_like(gate)
        self.ffn.neurons(x, gate, h)
        chosen = chosen_neurons(spec, self.cutoff, x, gate, h, self._lengths, self._matrices)
        self._seen += chosen.size
        self._kept += int(np.count_nonzero(chosen))
        h *= chosen
        y: F32 = h @ self.down_t
        if spec.down_t.bias is not None:
            y += spec.down_t.bias
        out += normalise(y, spec.post_norm) if spec.post_norm else y


@dataclass(frozen=True)
class Quality:
    """What a model made of the windows' second halves, beside the dense model."""

    perplexity: float
    kl: float
    """Mean KL(dense || trial) of the predictions, in nats."""


class Trial:
    """A dense model's reading of windows of tokens, to compare choices of neurons with.

    The first half of each window is read densely, once; `run` reads the second halves. ``inputs[layer]`` is
    what the layer's FFN read there in the dense run, (tokens, D). `progress` is told (windows, total).
    """

    def __init__(
        self,
        transformer: Transformer,
        windows: Sequence[NDArray[np.int32]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._transformer = transformer
        self._dense = [layer.ffn for layer in transformer.layers]
        self._sequences: list[State] = []
        self._tokens = [window[len(window) // 2 :] for window in windows]
        self._entering: list[list[F32]] = []
        """Of each window: the hidden vectors that enter each layer, and those that leave the last."""
        inputs: list[list[F32]] = [[] for _ in self._dense]
        for count, window in enumerate(windows, 1):
            sequence = transformer.sequence(len(window))
            half = len(window) // 2
            transformer.forward(Batch.of(sequence, window[:half], lossless=True, logits=0))
            batch = Batch.of(sequence, self._tokens[count - 1][:-1])
            x = transformer.embedding.forward(batch.tokens, batch.positions)
            entering = [x]
            for layer in range(len(self._dense)):
                x, read = self._layer(layer, self._dense[layer], x, sequence)
                inputs[layer].append(read)
                entering.append(x)
            if not is_finite(x):
                raise transformer.not_finite(batch)
            self._sequences.append(sequence)
            self._entering.append(entering)
            if progress:
                progress(count, len(windows))
        self.inputs = [np.concatenate(rows) for rows in inputs]
        self.dense = self._quality([entering[-1] for entering in self._entering])

    @property
    def predictions(self) -> int:
        """Predicted tokens that a run counts."""
        return sum(len(tokens) - 1 for tokens in self._tokens)

    def run(self, ffns: Sequence[FFN], first: int = 0) -> Quality:
        """Read with other FFNs, one for each layer; those before layer `first` must be the dense ones."""
        leaving = []
        for sequence, entering in zip(self._sequences, self._entering, strict=True):
            x = entering[first]
            for layer in range(first, len(ffns)):
                x, _ = self._layer(layer, ffns[layer], x, sequence)
            leaving.append(x)
        return self._quality(leaving)

    def run_one(self, layer: int, ffn: FFN) -> Quality:
        """Read with one FFN changed."""
        return self.run([*self._dense[:layer], ffn, *self._dense[layer + 1 :]], first=layer)

    def _layer(self, index: int, ffn: FFN, x: F32, sequence: State) -> tuple[F32, F32]:
        """What leaves a layer, and what its FFN read. The sequence does not advance: it is written again."""
        out = x.copy()
        batch = Batch.of(sequence, np.zeros(len(x), np.int32), lossless=True)
        view = self._transformer.backend.view(batch)
        self._transformer.layers[index].mixer.forward(x, out, view)
        read = x if self._transformer.config.parallel else out.copy()
        ffn.forward(read, out, view)
        return out, read

    def _quality(self, leaving: Sequence[F32]) -> Quality:
        step = max(1, _LOGITS_AT_ONCE // self._transformer.config.vocab_size)
        loss = divergence = 0.0
        for tokens, entering, x in zip(self._tokens, self._entering, leaving, strict=True):
            for start in range(0, len(x), step):
                part = slice(start, start + step)
                logs = log_softmax(self._transformer.head.forward(x[part]))
                targets = tokens[1:][part]
                loss -= float(logs[np.arange(len(targets)), targets].sum(dtype=np.float64))
                if x is not entering[-1]:
                    dense = log_softmax(self._transformer.head.forward(entering[-1][part]))
                    divergence += float((np.exp(dense) * (dense - logs)).sum(dtype=np.float64))
        return Quality(math.exp(loss / self.predictions), divergence / self.predictions)
