"""Multi-head latent attention, every head's keys and values made again from what is kept."""

import numpy as np

from hotset.backends.contract import F32, LatentSpec
from hotset.backends.maths import normalise, rotate, softmax
from hotset.backends.reference.linear import ReferenceLinear
from hotset.backends.reference.state import ReferenceSequence, own_sequence
from hotset.core.batch import Batch


class ReferenceLatentAttention:
    """What is kept of a position is l, normalised, and k, rotated."""

    def __init__(self, spec: LatentSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self.q_a = ReferenceLinear(spec.q_a) if spec.q_a else None
        self.q, self.kv_a = ReferenceLinear(spec.q), ReferenceLinear(spec.kv_a)
        self.k_b, self.v_b = spec.k_b.to_float32(), spec.v_b.to_float32()
        self.output = ReferenceLinear(spec.output)

    def forward(self, x: F32, out: F32, view: Batch) -> None:
        s = self.spec
        n = normalise(x, s.norm)
        latent, rotary = np.split(self.kv_a(n), [s.shape.rank], axis=1)
        latent = normalise(latent, s.kv_norm)
        if self.q_a and s.q_norm:
            n = normalise(self.q_a(n), s.q_norm)
        queries = self.q(n).reshape(len(x), s.n_heads, s.shape.query_dim)
        mixed = np.empty((len(x), s.n_heads, s.shape.value_dim), np.float32)
        for span, rows in view.rows():
            sequence = own_sequence(span.sequence)
            written = slice(sequence.length, sequence.length + span.count)
            positions, capacity = view.positions[rows], sequence.capacity
            k = rotate(rotary[rows, None], s.rope, positions, capacity)
            sequence.keys[self.index][written, 0] = np.concatenate([latent[rows], k[:, 0]], axis=1)
            plain, rotated = np.split(queries[rows], [s.shape.nope_dim], axis=2)
            rotated = rotate(rotated, s.rope, positions, capacity)
            mixed[rows] = self._attend(np.concatenate([plain, rotated], axis=2), sequence)
        out += self.output(mixed.reshape(len(x), -1))

    def _attend(self, q: F32, sequence: ReferenceSequence) -> F32:
        """One span's rows q (T, H, p + r), of which what is kept is there, to (T, H, v)."""
        s = self.spec
        start, end = sequence.length, sequence.length + len(q)
        kept = sequence.keys[self.index][:end, 0].astype(np.float32)
        latent, rotary = np.split(kept, [s.shape.rank], axis=1)
        keys = np.einsum("hcp,sc->hsp", self.k_b, latent)
        keys = np.concatenate([keys, np.broadcast_to(rotary, (s.n_heads, *rotary.shape))], axis=2)
        values = np.einsum("hvc,sc->hsv", self.v_b, latent)
        visible = np.arange(start, end)[:, None] >= np.arange(end)[None, :]
        scores = np.float32(s.scale) * (q.transpose(1, 0, 2) @ keys.transpose(0, 2, 1))
        mixed: F32 = (softmax(np.where(visible, scores, -np.inf)) @ values).transpose(1, 0, 2)
        return mixed
