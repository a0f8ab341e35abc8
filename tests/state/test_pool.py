"""The pool of sequences: what is begun with what, what is kept and what is dropped."""

import weakref

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotset.state.pool import Pool

CAPACITY = 100
ALIVE = weakref.WeakSet()


class Tokens:
    """A sequence that holds its tokens."""

    def __init__(self, ids=()):
        self.ids = list(ids)
        self.capacity = CAPACITY
        ALIVE.add(self)

    @property
    def length(self):
        return len(self.ids)

    def reusable(self, length):
        return min(length, self.length)

    def rewind(self, length):
        assert length <= self.length
        del self.ids[length:]

    def fork(self):
        return Tokens(self.ids)


def make(room=300, bytes_at=lambda positions: positions, **options):
    return Pool(Tokens, capacity=CAPACITY, bytes_at=bytes_at, room=room, **options)


def ids(*parts):
    return np.concatenate([np.full(count, token, np.int32) for token, count in parts])


def fill(pool, tokens, prompt=None, keep=True):
    """A request from its beginning to its end; how many tokens it found."""
    slot = pool.take(tokens, prompt=len(tokens) if prompt is None else prompt, positions=len(tokens))
    found = slot.length
    slot.sequence.ids += tokens[found:].tolist()
    if keep:
        pool.give_back(slot)
        return found
    return slot


def test_what_goes_on_is_given_away_as_it_is():
    pool = make()
    fill(pool, ids((1, 40)))
    assert (pool.kept, pool.bytes) == (1, 40)
    assert fill(pool, ids((1, 40), (2, 20))) == 40
    assert (pool.kept, pool.bytes) == (1, 60)


def test_what_goes_on_otherwise_is_copied_and_the_first_stays():
    pool = make()
    fill(pool, ids((1, 40), (2, 20)))
    assert fill(pool, ids((1, 40), (3, 20))) == 40
    assert (pool.kept, pool.bytes) == (2, 120)
    assert fill(pool, ids((1, 40), (2, 20), (4, 5))) == 60


def test_without_room_for_a_copy_the_first_goes_on():
    pool = make(room=100)
    fill(pool, ids((1, 40), (2, 20)))
    assert fill(pool, ids((1, 40), (3, 20))) == 40
    assert (pool.kept, pool.bytes) == (1, 60)


def test_the_last_token_is_never_found():
    pool = make()
    fill(pool, ids((1, 40)))
    assert fill(pool, ids((1, 40))) == 39


def test_short_beginnings_are_not_worth_a_copy():
    pool = make()
    fill(pool, ids((1, 15), (2, 20)))
    assert fill(pool, ids((1, 15), (3, 20))) == 0


def test_a_sequence_in_use_is_copied():
    pool = make()
    first = fill(pool, ids((1, 40)), keep=False)
    assert fill(pool, ids((1, 30), (2, 30))) == 30
    assert first.sequence.ids == [1] * 40


def test_the_one_used_longest_ago_is_dropped():
    pool = make(room=130)
    fill(pool, ids((1, 50)))
    fill(pool, ids((2, 50)))
    fill(pool, ids((1, 50), (1, 5)))  # used again
    fill(pool, ids((3, 50)))
    assert pool.bytes == 105
    assert fill(pool, ids((1, 55), (4, 5))) == 55


def test_where_those_in_use_leave_no_room_nothing_is_dropped():
    pool = make(room=100)
    first = fill(pool, ids((1, 50)), keep=False)
    fill(pool, ids((2, 40)))
    assert pool.take(ids((3, 60)), prompt=60, positions=60) is None
    assert pool.take(ids((2, 20), (3, 60)), prompt=80, positions=80) is None
    assert (pool.used, pool.kept) == (1, 1)
    assert pool.grow(first, 70)  # in blocks of 64, but no more than a sequence has
    assert (pool.bytes, pool.kept) == (100, 0)


def test_growing_takes_from_what_is_kept_but_not_from_others():
    pool = make(room=150)
    first = fill(pool, ids((1, 50)), keep=False)
    fill(pool, ids((2, 40)))
    second = fill(pool, ids((3, 40)), keep=False)
    assert pool.grow(first, 51)
    assert (first.counted, pool.kept) == (64, 1)
    assert pool.grow(second, 41)
    assert (second.counted, pool.kept) == (64, 0)
    assert not pool.grow(second, 65)
    assert second.counted == 64


def test_one_whole_sequence_always_has_room():
    assert make(room=10).room == CAPACITY


def test_positions_that_were_touched_stay_counted_and_others_do_not():
    pool = make(room=100, approximate=True)
    slot = pool.take(ids((1, 20), (2, 40)), prompt=20, positions=90)
    assert pool.bytes == 90
    slot.sequence.ids += [1] * 20 + [2] * 40
    pool.give_back(slot)
    assert (pool._kept[0].length, pool.bytes) == (20, 60)
    assert fill(pool, ids((1, 20), (3, 5))) == 20
    assert pool.bytes == 60


def test_a_gpu_takes_all_at_once():
    pool = make(room=200, bytes_at=lambda positions: CAPACITY)
    first = fill(pool, ids((1, 20)), keep=False)
    fill(pool, ids((2, 20)))
    assert pool.bytes == 200
    assert pool.grow(first, 60)
    assert fill(pool, ids((2, 19), (3, 20))) == 19  # no room for a third: as it is
    assert pool.bytes == 200


def test_of_an_approximate_answer_only_its_prompt_is_shared():
    pool = make(approximate=True)
    running = fill(pool, ids((1, 40), (2, 20)), prompt=40, keep=False)
    other = fill(pool, ids((1, 40), (2, 20), (3, 5)), keep=False)
    assert other.sequence.ids == [1] * 40 + [2] * 20 + [3] * 5
    pool.give_back(running)
    pool.give_back(other)
    assert fill(pool, ids((1, 40), (2, 20), (3, 5), (4, 5))) == 65
    assert fill(pool, ids((1, 40), (2, 10), (4, 5))) == 50


def test_a_prompt_that_is_being_read_is_worth_waiting_for():
    pool = make()
    slot = pool.take(ids((1, 60)), prompt=60, positions=60)
    slot.sequence.ids += [1] * 10
    assert pool.is_coming(ids((1, 60), (2, 5)))
    assert not pool.is_coming(ids((1, 40), (2, 5)))  # 30 more, of which the copy has 10
    slot.sequence.ids += [1] * 50
    assert not pool.is_coming(ids((1, 60), (2, 5)))


def test_no_memory():
    pool = make()
    fill(pool, ids((1, 50)))
    limit = len(ALIVE)

    def new():
        if len(ALIVE) >= limit:
            raise MemoryError("none")
        return Tokens()

    pool._new = new
    slot = fill(pool, ids((2, 50)), keep=False)  # what was kept makes way
    assert pool.kept == 0
    assert pool.take(ids((3, 50)), prompt=50, positions=50) is None
    pool.give_back(slot, keep=False)
    del slot
    limit = 0
    with pytest.raises(MemoryError, match="none"):
        pool.take(ids((3, 50)), prompt=50, positions=50)


class AnyUse(RuleBasedStateMachine):
    """Whatever is done, each sequence holds its own tokens and all have room."""

    def __init__(self):
        super().__init__()
        self.pool = make(room=260)
        self.running = []

    @rule(
        parts=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 30)), min_size=1, max_size=3),
        share=st.floats(0, 1),
    )
    def take(self, parts, share):
        tokens = ids(*parts)
        slot = self.pool.take(tokens, prompt=len(tokens), positions=len(tokens))
        if slot:
            assert slot.length < len(tokens)
            assert slot.sequence.ids == tokens[: slot.length].tolist()
            count = int(share * slot.left)
            slot.sequence.ids += tokens[slot.length :][:count].tolist()
            self.running.append(slot)
        else:
            assert self.running

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 9), keep=st.booleans())
    def give_back(self, index, keep):
        self.pool.give_back(self.running.pop(index % len(self.running)), keep=keep)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 9), count=st.integers(1, 40))
    def go_on(self, index, count):
        slot = self.running[index % len(self.running)]
        slot.sequence.ids += slot.tokens[slot.length : slot.known].tolist()
        for _ in range(min(count, CAPACITY - slot.length)):
            if self.pool.grow(slot, slot.length + 1):
                slot.append(3)
                slot.sequence.ids.append(3)

    @invariant()
    def each_has_its_own_tokens(self):
        for slot in (*self.running, *self.pool._kept):
            assert slot.sequence.ids == slot.tokens[: slot.length].tolist()
            assert slot.length <= slot.counted
        assert len({id(slot.sequence) for slot in (*self.running, *self.pool._kept)}) == (
            self.pool.used + self.pool.kept
        )
        assert self.pool.bytes <= self.pool.room


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=40, deadline=None)
