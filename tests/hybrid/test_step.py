"""A step as data: what it looks like, and that it is planned as said."""

from typing import Any

import pytest

from hotset.hybrid.parts import HybridLayer, OnDevice, OnHost, Split
from hotset.hybrid.plan_step import plan_step
from hotset.hybrid.step import (
    Answer,
    HostAttend,
    HostFeed,
    Prefetch,
    Receive,
    Send,
    SendChosen,
    Step,
    Take,
    TakeChosen,
    Vector,
    Where,
)

PART: Any = object()
HERE, THERE = OnHost(PART), OnDevice(PART)
SPLIT = Split(PART, PART, 64, 192)
PREDICTED = Split(PART, PART, 64, 192, predict=PART, add_normed=PART)


def plan(*layers: tuple[Any, Any], head: Any = THERE, parallel: bool = False) -> Step:
    parts = [HybridLayer(*layer) for layer in layers]
    return plan_step(parts, head, hidden=32, vocab_size=100, parallel=parallel)


def test_print() -> None:
    """The host's attention and FFN in a row are one task; cold neurons are computed beside hot ones.

    Before that, while the device attends, those are fetched that are likely to be chosen.
    """
    step = plan((THERE, PREDICTED), (HERE, HERE), (HERE, SPLIT), (THERE, THERE))
    expected = """\
device                              host
upload cutoffs to cutoffs
upload first to x
send chosen 0 of x as 0.chosen      prefetch by 0.chosen, until 1.chosen
add attention 0 of x to x
send x as 1.x                       take 1.x to 1.in
                                    take 1.chosen to 1.cold
                                    zero 1.sum
                                    add FFN 0 of 1.in, chosen by 1.cold, to 1.sum
                                    answer 1.sum as 1.answer
send chosen 0 of x as 1.chosen
zero sum
add FFN 0 of x to sum
await 1.answer and add it to sum
add norm 0 of sum to x
send x as 2.x                       take 2.x to 2.sum
                                    add attention 1 of 2.sum to 2.sum
                                    add FFN 1 of 2.sum to 2.sum
                                    add attention 2 of 2.sum to 2.sum
                                    answer 2.sum as 2.answer
await 2.answer and copy it to x
add FFN 2 of x to x                 zero 3.sum
                                    add FFN 2 of 2.sum to 3.sum
                                    answer 3.sum as 3.answer
await 3.answer and add it to x
add attention 3 of x to x
add FFN 3 of x to x
download logits of x to logits"""
    assert [line.split() for line in str(step).splitlines()] == [
        line.split() for line in expected.splitlines()
    ]
    # In two columns.
    columns = {
        line.index(word) for line in str(step).splitlines() for word in ("take", "zero 0") if word in line
    }
    assert columns == {str(step).index("host")}


def test_print_parallel() -> None:
    """Both parts read the same: the host's are begun before the device's, and what they read is sent once."""
    step = plan((HERE, PREDICTED), (HERE, HERE), (HERE, HERE), head=HERE, parallel=True)
    expected = """\
device                              host
upload cutoffs to cutoffs
upload first to x
send chosen 0 of x as 1.chosen      zero 0.sum
                                    add attention 0 of first to 0.sum
                                    answer 0.sum as 0.answer
                                    take 1.chosen to 1.cold
                                    zero 1.sum
                                    add FFN 0 of first, chosen by 1.cold, to 1.sum
                                    answer 1.sum as 1.answer
copy x to y
zero sum
add FFN 0 of x to sum
await 1.answer and add it to sum
add norm 0 of sum to y
await 0.answer and add it to y
send y as 2.x                       take 2.x to 2.sum
                                    copy 2.sum to 2.other
                                    add attention 1 of 2.sum to 2.other
                                    add FFN 1 of 2.sum to 2.other
                                    copy 2.other to 2.sum
                                    add attention 2 of 2.other to 2.sum
                                    add FFN 2 of 2.other to 2.sum"""
    assert [line.split() for line in str(step).splitlines()] == [
        line.split() for line in expected.splitlines()
    ]
    assert step.last == Vector("2.sum", 32, Where.HOST)
    assert step.logits is None


def test_everything_on_one_side() -> None:
    host = plan((HERE, HERE), (HERE, HERE), head=HERE)
    assert len(host.tasks) == 1
    assert not any(isinstance(instruction, Send) for instruction in host.instructions)
    device = plan((THERE, THERE))
    assert device.tasks == ()
    assert device.last == Vector("x", 32, Where.DEVICE)


@pytest.mark.parametrize("parallel", [False, True])
def test_every_packet_is_written_by_one_side_and_awaited_by_the_other(parallel: bool) -> None:
    """Once each; no other vector of the host's is written by two tasks, or by a task and the device."""
    parts = [(a, f) for a in (HERE, THERE) for f in (HERE, THERE, SPLIT, PREDICTED)]
    for head in (HERE, THERE):
        step = plan(*parts, *reversed(parts), head=head, parallel=parallel)
        done = [work for task in step.tasks for work in task.work]
        sent = [i.to for i in step.instructions if isinstance(i, Send | SendChosen)]
        assert sent == [work.x for work in done if isinstance(work, Take | TakeChosen | Prefetch)]
        answered = {work.to for work in done if isinstance(work, Answer)}
        received = [i.x for i in step.instructions if isinstance(i, Receive)]
        assert answered == set(received)
        assert len(received) == len(answered)
        assert not answered & set(sent)
        assert all(packet.where is Where.PACKET for packet in (*sent, *received))
        writers: dict[Vector, set[object]] = {}
        for instruction in step.instructions:
            to = getattr(instruction, "to", None)
            if to and to.where is not Where.DEVICE:
                writers.setdefault(to, set()).add("device")
        for task in step.tasks:
            for work in task.work:
                writers.setdefault(work.to, set()).add(task.number)
        assert all(len(by) == 1 for by in writers.values())
        assert sum(isinstance(w, HostAttend) for w in done) == 8
        assert sum(isinstance(w, HostFeed) for w in done) == 12


@pytest.mark.parametrize("parallel", [False, True])
def test_takes_come_before_work_and_answers_after(parallel: bool) -> None:
    """As the worker does them, whatever their order in the list."""
    parts = [(a, f) for a in (HERE, THERE) for f in (HERE, THERE, SPLIT, PREDICTED)]
    for task in plan(*parts, *reversed(parts), parallel=parallel).tasks:
        kinds = [
            "take"
            if isinstance(w, Take | TakeChosen | Prefetch)
            else "answer"
            if isinstance(w, Answer)
            else ""
            for w in task.work
        ]
        assert kinds == sorted(kinds, key=["take", "", "answer"].index)
