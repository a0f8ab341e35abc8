"""A small exhaustive model of the hand-shake: every order in which stores may land, failures and aborts.

Two agents, a few tasks and steps, vectors of two words. Memory is the host's. The host's loads and stores are
done at once, in their order. The device's stores land in any order, one location's in theirs, until a fence;
its loads give what is there or, but where they acquire, what it has seen there before. In a step the host may
fail at any task, and the device be given up at any point.

A step that is told to have succeeded must have read that step's numbers only, and everything must come to an
end. `by_flags` is the protocol of flags that are raised and lowered; `by_numbers` that of words which carry
the step's number. Both are told to the checker as lists of operations.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import pytest

WORDS = 2

Cell: TypeAlias = tuple[str, int, int]
"""What it is, the task, and which word."""
Value: TypeAlias = tuple[int, int]
"""Data, which are right where they are the step's number, and the number that goes with them."""
Operation: TypeAlias = tuple[str, Cell, Value]
"""``store``, ``wait`` (until the number is there), ``load`` (into what the step has read), or ``fence``."""

NOTHING: Value = (0, 0)


@dataclass(frozen=True)
class Protocol:
    """Both sides of a step of a number, and what follows one that has failed."""

    device: tuple[tuple[Operation, ...], ...]
    """Of each step."""
    host: tuple[tuple[tuple[Operation, ...], ...], ...]
    """Of each step and task."""
    release: tuple[tuple[Operation, ...], ...]
    """Of each step and task: what the host stores for a task that it does not do."""
    acquires: bool
    """Whether the device's loads see what was stored before what it has waited for."""
    rests: bool
    """Whether all stores land between steps, and failed ones are followed by flags being lowered."""

    @property
    def steps(self) -> int:
        """So many are done one after the other."""
        return len(self.host)

    @property
    def tasks(self) -> int:
        """Of each step."""
        return len(self.host[0])


@dataclass(frozen=True)
class State:
    """One moment."""

    step: int = 0
    device: int = 0
    """Operations done of the step; -1: given up."""
    task: int = 0
    host: int = 0
    """Operations done of the task."""
    failed: bool = False
    wrong: bool = False
    memory: tuple[tuple[Cell, Value], ...] = ()
    seen: tuple[tuple[Cell, Value], ...] = ()
    flying: tuple[tuple[Cell, Value], ...] = ()
    """The device's stores that have not landed, the oldest first."""


class WrongNumbersError(Exception):
    """A step is told to have succeeded that has read what is not its own."""


def check(protocol: Protocol) -> tuple[str, int]:
    """What goes wrong first, or nothing, and how many states were seen."""
    start = State()
    known, waiting = {start}, deque([start])
    while waiting:
        state = waiting.popleft()
        if state.step == protocol.steps:
            continue
        try:
            following = list(successors(protocol, state))
        except WrongNumbersError:
            return "another step's numbers", len(known)
        if not following:
            return "nobody can go on", len(known)
        for after in following:
            if after not in known:
                known.add(after)
                waiting.append(after)
    return "", len(known)


def successors(protocol: Protocol, state: State) -> Iterator[State]:
    device = protocol.device[state.step]
    host = protocol.host[state.step]
    for i, (cell, value) in enumerate(state.flying):  # a store lands
        if all(cell != earlier for earlier, _ in state.flying[:i]):
            yield put(replace(state, flying=state.flying[:i] + state.flying[i + 1 :]), cell, value)
    if 0 <= state.device < len(device):
        yield from do_device(protocol, state, device[state.device])
        yield replace(state, device=-1, failed=True)  # it is given up
    if state.task < protocol.tasks:
        if state.device < 0:
            yield release(protocol, state)
        elif state.host < len(host[state.task]):
            yield from do_host(state, host[state.task][state.host])
            yield release(protocol, replace(state, failed=True))
        else:
            yield replace(state, task=state.task + 1, host=0)
    at_end = state.task == protocol.tasks and (state.device < 0 or state.device == len(device))
    if at_end and (not protocol.rests or not state.flying):
        if state.wrong and not state.failed:
            raise WrongNumbersError
        after = State(state.step + 1, memory=state.memory, seen=state.seen, flying=state.flying)
        if protocol.rests and state.failed:
            after = replace(
                after, memory=tuple((c, v) for c, v in after.memory if c[0] not in ("ready", "done"))
            )
        yield after


def do_device(protocol: Protocol, state: State, operation: Operation) -> Iterator[State]:
    kind, cell, value = operation
    done = replace(state, device=state.device + 1)
    if kind == "store":
        yield replace(done, flying=(*state.flying, (cell, value)))
    elif kind == "fence":
        if not state.flying:
            yield done
    else:
        stale = [] if protocol.acquires else [dict(state.seen).get(cell, NOTHING)]
        for found in {dict(state.memory).get(cell, NOTHING), *stale}:
            if kind == "wait" and found[1] != value[1]:
                continue
            saw = dict(state.seen) | {cell: found}
            yield replace(
                done,
                seen=state.seen if protocol.acquires else tuple(sorted(saw.items())),
                wrong=state.wrong or (kind == "load" and found[0] != value[0]),
            )


def do_host(state: State, operation: Operation) -> Iterator[State]:
    kind, cell, value = operation
    done = replace(state, host=state.host + 1)
    found = dict(state.memory).get(cell, NOTHING)
    if kind == "store":
        yield put(done, cell, value)
    elif kind == "load":
        yield replace(done, wrong=state.wrong or found[0] != value[0])
    elif found[1] == value[1]:
        yield done


def release(protocol: Protocol, state: State) -> State:
    """The host gives up: what is left of the step is stored for the device to get to its end."""
    for task in range(state.task, protocol.tasks):
        for _, cell, value in protocol.release[state.step * protocol.tasks + task]:
            state = put(state, cell, value)
    return replace(state, task=protocol.tasks, host=0)


def put(state: State, cell: Cell, value: Value) -> State:
    memory = {**dict(state.memory), cell: value}
    return replace(state, memory=tuple(sorted(memory.items())))


def by_flags(*, fences: bool, acquires: bool = True, tasks: int = 1, steps: int = 2) -> Protocol:
    """Data, then a flag that is raised; whoever waited for it lowers it."""

    def device(n: int) -> Iterator[Operation]:
        for task in range(tasks):
            for word in range(WORDS):
                yield "store", ("x", task, word), (n, 0)
            if fences:
                yield "fence", ("x", task, 0), NOTHING
            yield "store", ("ready", task, 0), (0, 1)
            yield "wait", ("done", task, 0), (0, 1)
            for word in range(WORDS):
                yield "load", ("y", task, word), (n, 0)
            yield "store", ("done", task, 0), (0, 0)
            if fences:
                yield "fence", ("done", task, 0), NOTHING

    def host(n: int, task: int) -> Iterator[Operation]:
        yield "wait", ("ready", task, 0), (0, 1)
        yield "store", ("ready", task, 0), (0, 0)
        for word in range(WORDS):
            yield "load", ("x", task, word), (n, 0)
        for word in range(WORDS):
            yield "store", ("y", task, word), (n, 0)
        yield "store", ("done", task, 0), (0, 1)

    numbers = range(1, steps + 1)
    return Protocol(
        tuple(tuple(device(n)) for n in numbers),
        tuple(tuple(tuple(host(n, task)) for task in range(tasks)) for n in numbers),
        tuple((("store", ("done", task, 0), (0, 1)),) for _ in numbers for task in range(tasks)),
        acquires=acquires,
        rests=True,
    )


def by_numbers(numbers: tuple[int, ...] = (1, 2), *, tasks: int = 1, every_word: bool = True) -> Protocol:
    """Every word carries the step's number, which its reader waits for; nothing is lowered or fenced."""

    def words(name: str, n: int, step: int, task: int, kind: str) -> Iterator[Operation]:
        for word in range(WORDS):
            yield kind, (name, task, word), (step, n if every_word or word == 0 else 0)

    def read(name: str, n: int, step: int, task: int) -> Iterator[Operation]:
        # A word is data and number at once: what the wait has found is what is loaded.
        for word in range(WORDS):
            if every_word or word == 0:
                yield "wait", (name, task, word), (step, n)
        yield from words(name, n, step, task, "load")

    def device(n: int, step: int) -> Iterator[Operation]:
        for task in range(tasks):
            yield from words("x", n, step, task, "store")
            yield from read("y", n, step, task)

    def host(n: int, step: int, task: int) -> Iterator[Operation]:
        yield from read("x", n, step, task)
        yield from words("y", n, step, task, "store")

    steps = tuple(enumerate(numbers, 1))
    return Protocol(
        tuple(tuple(device(n, step)) for step, n in steps),
        tuple(tuple(tuple(host(n, step, task)) for task in range(tasks)) for step, n in steps),
        tuple(tuple(words("y", n, 0, task, "store")) for _, n in steps for task in range(tasks)),
        acquires=False,
        rests=False,
    )


@pytest.mark.parametrize(("tasks", "steps"), [(2, 2), (1, 3)])
def test_flags_with_fences_are_right(tasks: int, steps: int) -> None:
    """As streams raise and await them: in order, and at rest between steps."""
    wrong, states = check(by_flags(fences=True, tasks=tasks, steps=steps))
    assert wrong == ""
    assert states > 500


def test_flags_that_kernels_store_are_not() -> None:
    assert check(by_flags(fences=False))[0] == "another step's numbers"
    assert check(by_flags(fences=True, acquires=False))[0] == "another step's numbers"


@pytest.mark.parametrize(("tasks", "numbers"), [(2, (1, 2)), (1, (1, 2, 3))])
def test_numbered_words_are_right(tasks: int, numbers: tuple[int, ...]) -> None:
    """In any order, with nobody at rest between steps."""
    wrong, states = check(by_numbers(numbers, tasks=tasks))
    assert wrong == ""
    assert states > 1000


@pytest.mark.parametrize(
    "protocol",
    [
        by_numbers((1, 1)),  # a step after a failed one must have a number of its own
        by_numbers(every_word=False),  # a number does not speak for the word beside it
    ],
    ids=["the same number again", "a number for two words"],
)
def test_the_checker_finds(protocol: Protocol) -> None:
    assert check(protocol)[0] == "another step's numbers"
