"""The oracle: every part of the decoder in plain NumPy, written to be read as its definition.

Weights are dequantised to float32 and all arithmetic is float32. Nothing is fused, blocked or kept small, so
it is slow and needs four bytes a weight; other backends are tested against it, and it against `transformers`.
"""

from dataclasses import replace
from itertools import zip_longest

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotset.backends.contract import (
    F32,
    AttentionSpec,
    EmbeddingSpec,
    FFNSpec,
    HeadSpec,
    Linear,
    NeuronFFNSpec,
    StateShape,
)
from hotset.backends.cutoff import Cutoff
from hotset.backends.maths import (
    ACTIVATIONS,
    chosen_neurons,
    normalise,
    predict,
    predictor_matrices,
    rotate,
    softmax,
)
from hotset.core.batch import I32, Batch, Work
from hotset.core.config import Activation, Score, Way
from hotset.core.errors import HotsetError


class ReferenceLinear:
    """``y = x W^T + b``."""

    def __init__(self, linear: Linear) -> None:
        self.weight = linear.weight.to_float32()
        self.bias = linear.bias

    def __call__(self, x: F32) -> F32:
        """Of x (T, in): (T, out)."""
        y: F32 = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class ReferenceChooser:
    """See `hotset.core.batch.Chooser`."""

    def __init__(self, place: Cutoff) -> None:
        self.place = place
        self.work = Work()

    @property
    def cutoff(self) -> float:
        """See `Chooser`."""
        return self.place.value

    @cutoff.setter
    def cutoff(self, value: float) -> None:
        self.place = Cutoff(value)


class ReferenceSequence:
    """Keys and values as two arrays (layers, capacity, n_kv_heads, head_dim); see `Sequence`."""

    def __init__(self, keys: NDArray[np.floating], values: NDArray[np.floating]) -> None:
        self.keys, self.values = keys, values
        self.length = 0
        self.capacity = keys.shape[1]
        self.choosers: list[ReferenceChooser | None] = []

    def reusable(self, length: int) -> int:
        """See `Sequence`: every prefix is."""
        return min(length, self.length)

    def rewind(self, length: int) -> None:
        """See `Sequence`."""
        self.length = length
        for chooser in filter(None, self.choosers):
            chooser.place.rewind(length)

    def fork(self) -> "ReferenceSequence":
        """See `Sequence`."""
        forked = ReferenceSequence(self.keys.copy(), self.values.copy())
        forked.length = self.length
        forked.choosers = [c and ReferenceChooser(c.place.copy()) for c in self.choosers]
        return forked

    def advance(self, count: int) -> None:
        """See `Sequence`."""
        self.length += count


class ReferenceEmbedding:
    """A row of the table for each token, and one for its position where there is such a table."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.tokens = spec.tokens.to_float32()
        self.positions = None if spec.positions is None else spec.positions.to_float32()
        self.scale = np.float32(spec.scale)
        self.position_offset = spec.position_offset

    def forward(self, tokens: I32, positions: I32) -> F32:
        """See `Embedding`."""
        x: F32 = self.tokens[tokens] * self.scale
        if self.positions is not None:
            x += self.positions[positions + self.position_offset]
        return x


class ReferenceAttention:
    """Grouped-query attention with the whole matrix of scores."""

    def __init__(self, spec: AttentionSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self.q, self.k, self.v = ReferenceLinear(spec.q), ReferenceLinear(spec.k), ReferenceLinear(spec.v)
        self.output = ReferenceLinear(spec.output)

    def forward(self, x: F32, out: F32, view: Batch) -> None:
        """See `Attention`."""
        s = self.spec
        n = normalise(x, s.norm)
        q = self.q(n).reshape(-1, s.n_heads, s.head_dim)
        k = self.k(n).reshape(-1, s.n_kv_heads, s.head_dim)
        v = self.v(n).reshape(-1, s.n_kv_heads, s.head_dim)
        if s.q_norm:
            q = normalise(q, s.q_norm)
        if s.k_norm:
            k = normalise(k, s.k_norm)
        if s.rope:
            q, k = rotate(q, s.rope, view.positions), rotate(k, s.rope, view.positions)
        mixed = np.empty_like(q)
        for span, rows in view.rows():
            mixed[rows] = self._attend(q[rows], k[rows], v[rows], _own(span.sequence))
        y = self.output(mixed.reshape(len(x), -1))
        out += normalise(y, s.post_norm) if s.post_norm else y

    def _attend(self, q: F32, k: F32, v: F32, sequence: ReferenceSequence) -> F32:
        """One span's rows: q (T, H, d), k and v (T, K, d), to (T, H, d)."""
        s = self.spec
        start, end = sequence.length, sequence.length + len(q)
        sequence.keys[self.index, start:end] = k
        sequence.values[self.index, start:end] = v

        # Heads first: queries (H, T, d) against the keys (H, S, d) of all positions so far. A key-value head
        # serves n_heads / n_kv_heads query heads that follow one another.
        group = s.n_heads // s.n_kv_heads
        queries = q.transpose(1, 0, 2)
        keys, values = (
            kept[self.index, :end].astype(np.float32).transpose(1, 0, 2).repeat(group, axis=0)
            for kept in (sequence.keys, sequence.values)
        )
        distance = np.arange(start, end)[:, None] - np.arange(end)[None, :]
        visible = distance >= 0
        if s.window is not None:
            visible &= distance < s.window
        scores = np.where(visible, s.scale * (queries @ keys.transpose(0, 2, 1)), -np.inf)
        mixed: F32 = (softmax(scores) @ values).transpose(1, 0, 2)
        return mixed


def _own(sequence: object) -> ReferenceSequence:
    if not isinstance(sequence, ReferenceSequence):
        raise TypeError("the sequence is another backend's")
    return sequence


class ReferenceFFN:
    """All neurons, for every token."""

    def __init__(self, spec: FFNSpec) -> None:
        self.norm, self.post_norm = spec.norm, spec.post_norm
        self.hidden = _Neurons(spec)
        self.down = ReferenceLinear(spec.down)

    def forward(self, x: F32, out: F32, view: Batch | None = None) -> None:
        """See `FFN`."""
        y = self.down(self.hidden(normalise(x, self.norm))[1])
        out += normalise(y, self.post_norm) if self.post_norm else y

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        """See `FFN`."""
        gate[:], h[:] = self.hidden(normalise(x, self.norm))


class _Neurons:
    """Of normalised input (T, D): the activation's input and the neurons' values, both (T, F)."""

    def __init__(self, spec: FFNSpec | NeuronFFNSpec) -> None:
        self.activation = spec.activation
        self.gate = ReferenceLinear(spec.gate) if spec.gate else None
        self.up = ReferenceLinear(spec.up)

    def __call__(self, n: F32) -> tuple[F32, F32]:
        act = ACTIVATIONS[self.activation]
        up = self.up(n)
        if self.gate is None:
            return up, act(up)
        if self.activation is Activation.DRELU:
            up = act(up)
        gate = self.gate(n)
        return gate, act(gate) * up


class ReferenceNeuronFFN:
    """Computes all neurons, then forgets those that its plan would not have computed."""

    def __init__(self, spec: NeuronFFNSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self.hidden = _Neurons(spec)
        self._down_t = spec.down_t.weight.to_float32()
        self._lengths = np.linalg.norm(self._down_t, axis=1)
        self._matrices = predictor_matrices(spec)

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        """See `FFN`."""
        gate[:], h[:] = self.hidden(normalise(x, self.spec.norm))

    def forward(self, x: F32, out: F32, view: Batch | None) -> None:
        """See `FFN`; without a view the rows are lossless."""
        spec = self.spec
        gate, h = self.hidden(normalise(x, spec.norm))
        for span, rows in view.rows() if view else ():
            choosers = _own(span.sequence).choosers
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
        if audited:
            read = x if spec.plan.raw_input else normalise(x, spec.norm)
            scores = predict(self._matrices, read, spec.plan.score is Score.LOW_RANK_RELU)
            kept = place.learn(position, scores[0], h[0], lossless)
        if lossless:
            return
        chosen = np.ones(h.shape, np.bool_)
        if not audited:
            chosen = chosen_neurons(spec, cutoff, x, gate, h, self._lengths, self._matrices)
        # Of a chosen neuron whose gate turns out to be zero, the row of down is not read.
        read_rows = chosen & (h != 0) if spec.activation.zero_producing else chosen
        h[~read_rows] = 0
        touched = chosen if spec.plan.way is Way.PREDICTOR else read_rows
        done = Work(1, int(read_rows.sum()), int((h != 0).sum()), int(touched.sum()))
        chooser.work += replace(done, audits=1, kept=kept) if audited else done


class ReferenceHead:
    """The final norm and the output projection."""

    def __init__(self, spec: HeadSpec) -> None:
        self.norm = spec.norm
        self.output = ReferenceLinear(spec.output)

    def forward(self, x: F32) -> F32:
        """See `Head`."""
        return self.output(normalise(x, self.norm))


class ReferenceBackend:
    """Builds the parts; see `hotset.backends.contract.Backend`."""

    name = "reference"

    def copy(self, x: F32) -> F32:
        """See `Backend`."""
        y: F32 = x.copy()
        return y

    def rows(self, x: F32, rows: NDArray[np.intp]) -> F32:
        """See `Backend`."""
        y: F32 = x[rows]
        return y

    def view(self, batch: Batch) -> Batch:
        """See `Backend`."""
        return batch

    def embedding(self, spec: EmbeddingSpec) -> ReferenceEmbedding:
        """Build the token embedding."""
        return ReferenceEmbedding(spec)

    def attention(self, spec: AttentionSpec, index: int = 0) -> ReferenceAttention:
        """Build one layer's attention."""
        return ReferenceAttention(spec, index)

    def ffn(self, spec: FFNSpec) -> ReferenceFFN:
        """Build one layer's FFN."""
        return ReferenceFFN(spec)

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0) -> ReferenceNeuronFFN:
        """Build one layer's FFN that is stored by neuron."""
        return ReferenceNeuronFFN(spec, index)

    def head(self, spec: HeadSpec) -> ReferenceHead:
        """Build the final norm and the output projection."""
        return ReferenceHead(spec)

    def sequence(self, shape: StateShape, capacity: int, kv_type: str) -> ReferenceSequence:
        """Room for `capacity` positions; `kv_type` is ``f32`` or ``f16``."""
        dtypes: dict[str, DTypeLike] = {"f32": np.float32, "f16": np.float16}
        if kv_type not in dtypes:
            raise HotsetError(
                f"KV cache type {kv_type!r}: the reference backend has f32 and f16; choose one of them"
            )
        size = shape.n_layers, capacity, shape.n_kv_heads, shape.head_dim
        sequence = ReferenceSequence(np.zeros(size, dtypes[kv_type]), np.zeros(size, dtypes[kv_type]))
        sequence.choosers = [
            None if cutoff is None else ReferenceChooser(Cutoff(cutoff, kept, layer))
            for layer, (cutoff, kept) in enumerate(zip_longest(shape.cutoffs, shape.kept, fillvalue=0.0))
        ]
        return sequence
