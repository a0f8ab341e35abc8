"""Sequences on the GPU, and a batch of them as its kernels take it."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotset.backends.contract import StateShape
from hotset.backends.gpu.device import Gpu
from hotset.backends.gpu.kernels.attention import SPAN
from hotset.backends.gpu.kernels.recurrent import WALK
from hotset.backends.gpu.recurrent_states import RecurrentStates
from hotset.core.batch import BLOCK_ROWS, Batch
from hotset.core.errors import HotsetError
from hotset.core.heads import KvShape

_TYPES = {"f16": torch.float16, "f32": torch.float32, "q8_0": torch.int8}

Table = NDArray[np.int64]
"""A batch's spans (S, SPAN), as `hotset.backends.gpu.kernels.attention` reads them, or (S, WALK), as
`hotset.backends.gpu.kernels.recurrent` does."""


class GpuSequence:
    """Keys and values of one sequence, layer by layer (kv heads, capacity, head_dim).

    In q8_0 rows are longer. Where keys begin with their values, there are no others.

    See `hotset.core.batch.Sequence`. A GPU computes all neurons, so there are no choosers.
    """

    def __init__(
        self,
        keys: Any,
        values: Any,
        before: tuple[int, ...],
        capacity: int,
        states: RecurrentStates,
        choosers: int,
    ) -> None:
        """A layer's keys, and its values, begin as many capacities behind others' as `before` says."""
        self.keys, self.values, self.before, self.states = keys, values, before, states
        self.choosers: list[None] = [None] * choosers
        self._length, self._capacity = 0, capacity

    @classmethod
    def empty(cls, gpu: Gpu, shape: StateShape, capacity: int, kv_type: str) -> "GpuSequence":
        """Room for `capacity` positions; `kv_type` is ``f16``, ``f32`` or ``q8_0``. Raises `HotsetError`."""
        if kv_type not in _TYPES:
            raise HotsetError(
                f"KV cache type: a GPU's is one of {', '.join(_TYPES)}, found {kv_type!r}; use f16"
            )
        if capacity < 1:
            raise HotsetError(f"context: expected at least 1 token, found {capacity}")
        *before, numbers = accumulate((_numbers(kept, kv_type) for kept in shape.kv), initial=0)
        try:
            keys = torch.zeros(numbers * capacity, dtype=_TYPES[kv_type], device=gpu.device)
            values = torch.zeros_like(keys if all(kept.values for kept in shape.kv) else keys[:0])
            states = RecurrentStates(gpu, shape.recurrent)
        except RuntimeError as error:  # torch.OutOfMemoryError, and DefaultCPUAllocator's
            raise HotsetError(
                f"KV cache: no memory for {capacity} positions of {shape.n_layers} layers; "
                "ask for a smaller context"
            ) from error
        return cls(keys, values, tuple(before), capacity, states, len(shape.cutoffs))

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._capacity

    def reusable(self, length: int) -> int:
        return self.states.reusable(length, self._length)

    @property
    def undoable(self) -> int:
        return 0 if self.states.any else self.capacity - self._length

    def rewind(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"length: expected 0 to {self._length}, found {length}")
        if self.states.any and length < self._length:
            self.states.rewind(length)
        self._length = length

    def save(self) -> bool:
        return self.states.save(self._length)

    def forget(self, length: int) -> None:
        self.states.forget(length)

    @property
    def saved_bytes(self) -> int:
        return self.states.saved_bytes

    def limit_saved(self, nbytes: int) -> None:
        self.states.limit_saved(nbytes)

    def fork(self) -> "GpuSequence":
        """Keys and values are copied, states are shared."""
        try:
            keys, values, states = self.keys.clone(), self.values.clone(), self.states.fork()
        except RuntimeError as error:
            raise MemoryError(f"no memory for another sequence of {self.capacity} positions") from error
        copy = GpuSequence(keys, values, self.before, self.capacity, states, len(self.choosers))
        copy._length = self._length
        return copy

    def advance(self, count: int) -> None:
        if not 0 <= count <= self.capacity - self._length:
            raise ValueError(f"no room for {count} positions after {self._length} of {self.capacity}")
        self.states.advance(self._length)
        self._length += count


def _numbers(kept: KvShape, kv_type: str) -> int:
    """What a layer's keys take of a position, of the type's numbers: a multiple of 16, so that they are
    aligned whatever is before them. Raises `HotsetError`."""
    row = kept.size
    if kv_type == "q8_0":
        if row % 32:
            raise HotsetError(f"KV cache type q8_0: expected heads of a multiple of 32, found {row}")
        row = row // 32 * 34  # with a float16 scale for each 32
    return -(-kept.heads * row // 16) * 16


@dataclass(frozen=True)
class Spans:
    """Some spans of a batch, whose attention is launched at once."""

    table: Any
    """(S, SPAN) int64 on the device."""
    most: int
    """Rows of the longest."""
    capacity: int
    """Positions that any of their sequences has room for, at most: a power of two."""


@dataclass(frozen=True)
class Block:
    """Rows of a batch that are computed at once, and the spans that they are, counted from its first row."""

    rows: slice
    spans: tuple[Spans, ...]
    walks: Any
    """(S, WALK) int64 on the device."""


@dataclass(frozen=True)
class GpuView:
    """A batch for the GPU's parts. What they launch depends on this alone, not on the tables' content."""

    rows: int
    dtype: Any
    """torch's type of the keys and values."""
    before: tuple[int, ...]
    """Of each layer's keys; see `GpuSequence`."""
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, gpu: Gpu, batch: Batch) -> "GpuView":
        """The view of a batch of this backend's sequences: single rows in one launch, longer spans in one."""
        described = describe(batch)

        def block(rows: slice) -> Block:
            table = described.within(rows)
            spans = tuple(
                Spans(gpu.upload(np.ascontiguousarray(group)), int(group[:, -1].max()), described.capacity)
                for group in (table[table[:, -1] == 1], table[table[:, -1] > 1])
                if len(group)
            )
            return Block(rows, spans, gpu.upload(described.walks_within(rows)))

        rows = len(batch.tokens)
        return cls(rows, described.dtype, described.before, tuple(map(block, blocks_of(rows))))


def blocks_of(rows: int) -> list[slice]:
    """A batch's rows in about equal blocks of at most `BLOCK_ROWS`."""
    count = max(1, -(-rows // BLOCK_ROWS))
    ends = [rows * i // count for i in range(count + 1)]
    return [slice(*ends) for ends in pairwise(ends)]


@dataclass(frozen=True)
class Described:
    """A batch's spans for the kernels, and what their launches depend on."""

    table: Table
    walks: Table
    """The same spans for recurrent layers."""
    dtype: Any
    before: tuple[int, ...]
    capacity: int

    def walks_within(self, rows: slice) -> Table:
        """The table of some rows, counted from the first of them; what others began goes on."""
        walks = self.walks.copy()
        first, count = walks[:, -2], walks[:, -1]
        start, stop = np.maximum(first, rows.start), np.minimum(first + count, rows.stop)
        walks[:, 0] = np.where(start > first, walks[:, 1], walks[:, 0])
        walks[:, -2], walks[:, -1] = start - rows.start, stop - start
        here: Table = walks[walks[:, -1] > 0]
        return here

    def within(self, rows: slice) -> Table:
        """The table of some rows, counted from the first of them."""
        table = self.table.copy()
        first, count = table[:, -2], table[:, -1]
        start, stop = np.maximum(first, rows.start), np.minimum(first + count, rows.stop)
        table[:, -3] += start - first
        table[:, -2], table[:, -1] = start - rows.start, stop - start
        here: Table = table[table[:, -1] > 0]
        return here

    def by_rows(self) -> Table:
        """The table with a span for each row, so that equal numbers of rows have equal launches."""
        counts = self.table[:, -1]
        rows = np.repeat(self.table, counts, axis=0)
        within = np.arange(len(rows)) - np.repeat(self.table[:, -2], counts)
        rows[:, -3] += within
        rows[:, -2] += within
        rows[:, -1] = 1
        return rows


def describe(batch: Batch) -> Described:
    """A batch of `GpuSequence`s.

    Raises `HotsetError` where they have different types, and `ValueError` where one has no room.
    """
    table = np.zeros((len(batch.spans), SPAN), np.int64)
    walks = np.zeros((len(batch.spans), WALK), np.int64)
    types, capacity = set(), 1
    for entry, walk, (span, rows) in zip(table, walks, batch.rows(), strict=True):
        sequence = span.sequence
        if not isinstance(sequence, GpuSequence):
            raise TypeError("the sequence is another backend's")
        if span.count > sequence.capacity - sequence.length:
            raise ValueError(
                f"no room for {span.count} positions after {sequence.length} of {sequence.capacity}"
            )
        addresses = sequence.keys.data_ptr(), sequence.values.data_ptr()
        entry[:] = (*addresses, sequence.capacity, sequence.length, rows.start, span.count)
        walk[:] = (*sequence.states.addresses(sequence.length), rows.start, span.count)
        types.add((sequence.keys.dtype, sequence.before))
        capacity = max(capacity, sequence.capacity)
    if len(types) != 1:
        raise HotsetError("a batch's sequences must have one type of keys and values, as launches have one")
    return Described(table, walks, *types.pop(), 1 << (capacity - 1).bit_length())
