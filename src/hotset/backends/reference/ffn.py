"""FFNs: plain, and stored by neuron."""

from dataclasses import replace

import numpy as np

from hotset.backends.contract import F32, FFNSpec, NeuronFFNSpec
from hotset.backends.maths import (
    chosen_neurons,
    neurons,
    normalise,
    predict,
    predictor_matrices,
)
from hotset.backends.reference.linear import ReferenceLinear
from hotset.backends.reference.state import ReferenceChooser, own_sequence
from hotset.core.batch import Batch, Work
from hotset.core.config import Score, Way


class ReferenceFFN:
    """All neurons, for every token."""

    def __init__(self, spec: FFNSpec) -> None:
        self.norm, self.post_norm = spec.norm, spec.post_norm
        self.hidden = ReferenceNeurons(spec)
        self.down = ReferenceLinear(spec.down)

    def forward(self, x: F32, out: F32, view: Batch | None = None) -> None:
        y = self.down(self.hidden(normalise(x, self.norm))[1])
        out += normalise(y, self.post_norm) if self.post_norm else y

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        gate[:], h[:] = self.hidden(normalise(x, self.norm))


class ReferenceNeurons:
    """Of normalised input (T, D): the activation's input and the neurons' values, both (T, F)."""

    def __init__(self, spec: FFNSpec | NeuronFFNSpec) -> None:
        self.activation = spec.activation
        self.gate = ReferenceLinear(spec.gate) if spec.gate else None
        self.up = ReferenceLinear(spec.up)

    def __call__(self, n: F32) -> tuple[F32, F32]:
        up = self.up(n)
        gate = self.gate(n) if self.gate else None
        return up if gate is None else gate, neurons(self.activation, gate, up)


class ReferenceNeuronFFN:
    """Computes all neurons, then forgets those that its plan would not have computed."""

    def __init__(self, spec: NeuronFFNSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self.hidden = ReferenceNeurons(spec)
        self._down_t = spec.down_t.weight.to_float32()
        self._lengths = np.linalg.norm(self._down_t, axis=1)
        self._matrices = predictor_matrices(spec)

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        gate[:], h[:] = self.hidden(normalise(x, self.spec.norm))

    def forward(self, x: F32, out: F32, view: Batch | None) -> None:
        """Without a view the rows are lossless."""
        spec = self.spec
        gate, h = self.hidden(normalise(x, spec.norm))
        for span, rows in view.rows() if view else ():
            choosers = own_sequence(span.sequence).choosers
            chooser = choosers[self.index] if choosers else None
            for i, position in enumerate(range(span.sequence.length, span.sequence.length + span.count)):
                row = slice(rows.start + i, rows.start + i + 1)
                if chooser:
                    self._choose(x[row], gate[row], h[row], chooser, position, span.lossless)
        y: F32 = h @ self._down_t
        if spec.down_t.bias is not None:
            y += spec.down_t.bias
        out += normalise(y, spec.post_norm) if spec.post_norm else y

    def _choose(
        self, x: F32, gate: F32, h: F32, chooser: ReferenceChooser, position: int, lossless: bool
    ) -> None:
        """Set to zero what the plan leaves out of one row's neurons (1, F), and audit it where due."""
        spec, place = self.spec, chooser.place
        audited = spec.plan.way is Way.PREDICTOR and place.due(position, lossless)
        cutoff = place.value
        looked_at = place.looked_at(h.shape[-1]) if audited else np.False_
        if audited:
            read = x if spec.plan.raw_input else normalise(x, spec.norm)
            scores = predict(self._matrices, read, spec.plan.score is Score.LOW_RANK_RELU)
            kept = place.learn(position, scores[0], h[0], lossless)
        if lossless:
            return
        chosen = chosen_neurons(spec, cutoff, x, gate, h, self._lengths, self._matrices) | looked_at
        # Of a chosen neuron whose gate turns out to be zero, the row of down is not read.
        read_rows = chosen & (h != 0) if spec.activation.zero_producing else chosen
        h[~read_rows] = 0
        touched = chosen if spec.plan.way is Way.PREDICTOR else read_rows
        done = Work(1, int(read_rows.sum()), int((h != 0).sum()), int(touched.sum()))
        chooser.work += replace(done, audits=1, kept=kept) if audited else done
