"""Heads of attention, and what their keys and values take."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class HeadsConfig:
    """Heads of one layer's attention."""

    n_heads: int
    n_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (arXiv 2405.04434): one vector has all heads' keys and values."""

    rank: int
    """Numbers of that vector."""
    rope_dim: int
    """Numbers beside it that RoPE turns: a part of every head's key."""
    nope_dim: int
    """Numbers of a head's query and key that RoPE leaves as they are."""
    value_dim: int
    """Numbers of a head's value."""
    query_rank: int = 0
    """Numbers that queries are made from; 0: from the hidden vector."""
    norm_eps: float = 1e-6
    """Of the norms of that vector and of these numbers, whatever the model's other norms have."""

    @property
    def query_dim(self) -> int:
        """Numbers of a head's query."""
        return self.nope_dim + self.rope_dim

    @property
    def kept(self) -> int:
        """Numbers that are kept of a position: a key and, in its first `rank`, a value."""
        return self.rank + self.rope_dim


class KvShape(NamedTuple):
    """What one layer keeps of a position."""

    heads: int
    size: int
    """Of a head's key, and of its value."""
    values: bool = True
    """False: values are the keys' first numbers, and not kept apart."""

    @property
    def numbers(self) -> int:
        """How many numbers that are."""
        return self.heads * self.size * (1 + self.values)


@dataclass(frozen=True)
class QueryGrowth:
    """Queries are multiplied by ``1 + factor * ln(1 + floor(position / context))`` (Ministral 3)."""

    factor: float
    context: int
