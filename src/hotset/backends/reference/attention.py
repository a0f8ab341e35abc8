"""Attention."""

import numpy as np

from hotset.backends.contract import F32, AttentionSpec, Norm
from hotset.backends.maths import growth, normalise, rotate, sigmoid, soft_cap, softmax, softplus
from hotset.backends.reference.linear import ReferenceLinear
from hotset.backends.reference.state import ReferenceSequence, own_sequence
from hotset.core.batch import Batch
from hotset.core.config import RopeConfig


class ReferenceAttention:
    """Grouped-query attention with the whole matrix of scores."""

    def __init__(self, spec: AttentionSpec, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self.q = ReferenceLinear(spec.q)
        self.k = ReferenceLinear(spec.k) if spec.k else None
        self.v = ReferenceLinear(spec.v) if spec.v else None
        self.head_gate = ReferenceLinear(s) if (s := spec.head_gate) else None
        self.output = ReferenceLinear(spec.output)

    def forward(self, x: F32, out: F32, view: Batch) -> None:
        s = self.spec
        n = normalise(x, s.norm)
        q = self.q(n).reshape(-1, s.n_heads, (1 + s.gated) * s.head_dim)
        q, gate = q[:, :, : s.head_dim], q[:, :, s.head_dim :]
        q = _normalised(q, s.q_norm)
        if s.rope:
            q = _rotated(q, s.rope, view)
        if s.growth:
            q = q * growth(s.growth, view.positions)[:, None, None]
        kv = self._keys_and_values(n, view) if self.k else None
        mixed = np.empty_like(q)
        for span, rows in view.rows():
            sequence = own_sequence(span.sequence)
            if kv:
                written = slice(sequence.length, sequence.length + span.count)
                sequence.keys[self.index][written] = kv[0][rows]
                sequence.values[self.index][written] = kv[1][rows]
            mixed[rows] = self._attend(q[rows], sequence)
        if s.gated:
            mixed *= sigmoid(gate)
        if self.head_gate:
            mixed *= softplus(self.head_gate(n))[:, :, None]
        y = self.output(mixed.reshape(len(x), -1))
        out += normalise(y, s.post_norm) if s.post_norm else y

    def _keys_and_values(self, n: F32, view: Batch) -> tuple[F32, F32]:
        """Of the normalised rows n (T, D), each (T, K, d)."""
        s = self.spec
        assert self.k is not None
        k = self.k(n).reshape(-1, s.n_kv_heads, s.head_dim)
        v = self.v(n).reshape(-1, s.n_kv_heads, s.head_dim) if self.v else k
        v = _normalised(v, s.v_norm)
        k = _normalised(k, s.k_norm)
        return _rotated(k, s.rope, view) if s.rope else k, v

    def _attend(self, q: F32, sequence: ReferenceSequence) -> F32:
        """One span's rows q (T, H, d), whose keys and values are there, to (T, H, d)."""
        s = self.spec
        start, end = sequence.length, sequence.length + len(q)

        # Heads first: queries (H, T, d) against the keys (H, S, d) of all positions so far. A key-value head
        # serves n_heads / n_kv_heads query heads that follow one another.
        group = s.n_heads // s.n_kv_heads
        queries = q.transpose(1, 0, 2)
        keys, values = (
            kept[self.index][:end].astype(np.float32).transpose(1, 0, 2).repeat(group, axis=0)
            for kept in (sequence.keys, sequence.values)
        )
        distance = np.arange(start, end)[:, None] - np.arange(end)[None, :]
        visible = distance >= 0
        if s.window is not None:
            visible &= distance < s.window
        scores = np.where(
            visible, soft_cap(s.scale * (queries @ keys.transpose(0, 2, 1)), s.soft_cap), -np.inf
        )
        if s.sinks is not None:
            sinks = np.broadcast_to(s.sinks[:, None, None], (*scores.shape[:2], 1))
            scores = np.concatenate([scores, sinks], axis=2).astype(np.float32)
        mixed: F32 = (softmax(scores)[:, :, :end] @ values).transpose(1, 0, 2)
        return mixed


def _rotated(heads: F32, rope: RopeConfig, view: Batch) -> F32:
    """Heads (T, H, d), each span's as its sequence wants."""
    spans = [
        rotate(heads[rows], rope, view.positions[rows], span.sequence.capacity) for span, rows in view.rows()
    ]
    return np.concatenate(spans)


def _normalised(heads: F32, norm: Norm | None) -> F32:
    """Heads (T, H, d), each normalised, or all as one vector."""
    if norm is None:
        return heads
    if norm.weight.size == heads.shape[2]:
        return normalise(heads, norm)
    return normalise(heads.reshape(len(heads), -1), norm).reshape(heads.shape)
