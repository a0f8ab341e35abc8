"""A step as data: what it looks like, and that it is planned as said."""

from typing import Any

import pytest

from hotset.hybrid.parts import HybridLayer, OnDevice, OnHost, Split
from hotset.hybrid.plan_step import plan_step
from hotset.hybrid.step import HostAttend, HostFeed, Raise, Receive, Send, Step, Vector

PART: Any = object()
HERE, THERE = OnHost(PART), OnDevice(PART)
SPLIT = Split(PART, PART, 64, 192)
PREDICTED = Split(PART, PART, 64, 192, predict=PART, add_normed=PART)


def plan(*layers: tuple[Any, Any], head: Any = THERE, parallel: bool = False) -> Step:
    parts = [HybridLayer(*layer) for layer in layers]
    return plan_step(parts, head, hidden=32, vocab_size=100, parallel=parallel)


def test_print() -> None:
    """The host's attention and FFN in a row are one task; cold neurons are computed beside hot ones."""
    step = plan((THERE, PREDICTED), (HERE, HERE), (HERE, SPLIT), (THERE, THERE))
    expected = """\
device                                       host
fetch first to x
add attention 0 of x to x
send x to 0.x
send scores 0 of x to 0.scores
raise 0                                      zero 0.answer
                                             add FFN 0 of 0.x, chosen by 0.scores, to 0.answer
zero sum
add FFN 0 of x to sum
await 0: add 0.answer to sum
add norm 0 of sum to x
send x to 1.x
raise 1                                      copy 1.x to 1.answer
                                             add attention 1 of 1.answer to 1.answer
                                             add FFN 1 of 1.answer to 1.answer
                                             add attention 2 of 1.answer to 1.answer
await 1: fetch 1.answer to x
raise 2                                      zero 2.answer
                                             add FFN 2 of 1.answer to 2.answer
add FFN 2 of x to x
await 2: add 2.answer to x
add attention 3 of x to x
add FFN 3 of x to x
send logits of x to logits"""
    assert [line.split() for line in str(step).splitlines()] == [
        line.split() for line in expected.splitlines()
    ]
    # In two columns.
    columns = {
        line.index(word) for line in str(step).splitlines() for word in ("zero 0", "copy") if word in line
    }
    assert columns == {str(step).index("host")}


def test_print_parallel() -> None:
    """Both parts read the same: the host's are begun before the device's, and what they read is sent once."""
    step = plan((HERE, PREDICTED), (HERE, HERE), (HERE, HERE), head=HERE, parallel=True)
    expected = """\
device                                       host
fetch first to x
raise 0                                      zero 0.answer
                                             add attention 0 of first to 0.answer
send scores 0 of x to 1.scores
raise 1                                      zero 1.answer
                                             add FFN 0 of first, chosen by 1.scores, to 1.answer
copy x to y
zero sum
add FFN 0 of x to sum
await 1: add 1.answer to sum
add norm 0 of sum to y
await 0: add 0.answer to y
send y to 2.x
raise 2                                      copy 2.x to 2.answer
                                             copy 2.answer to 2.other
                                             add attention 1 of 2.answer to 2.other
                                             add FFN 1 of 2.answer to 2.other
                                             copy 2.other to 2.answer
                                             add attention 2 of 2.other to 2.answer
                                             add FFN 2 of 2.other to 2.answer
await 2"""
    assert [line.split() for line in str(step).splitlines()] == [
        line.split() for line in expected.splitlines()
    ]
    assert step.last == Vector("2.answer", 32, on_device=False)
    assert step.logits is None


def test_everything_on_one_side() -> None:
    host = plan((HERE, HERE), (HERE, HERE), head=HERE)
    assert str(host).count("raise") == 1
    assert not any(isinstance(instruction, Send) for instruction in host.instructions)
    device = plan((THERE, THERE))
    assert device.tasks == ()
    assert device.last == Vector("x", 32, on_device=True)


@pytest.mark.parametrize("parallel", [False, True])
def test_every_task_is_raised_once_and_answered(parallel: bool) -> None:
    """And no vector of the host's is written by two tasks, or by a task and the device."""
    parts = [(a, f) for a in (HERE, THERE) for f in (HERE, THERE, SPLIT, PREDICTED)]
    for head in (HERE, THERE):
        step = plan(*parts, *reversed(parts), head=head, parallel=parallel)
        raised = [i.task for i in step.instructions if isinstance(i, Raise)]
        assert raised == [task.number for task in step.tasks]
        received = {i.task for i in step.instructions if isinstance(i, Receive)}
        assert len(raised) - len(received) <= (head is HERE)  # the last may only be awaited
        writers: dict[Vector, set[object]] = {}
        for instruction in step.instructions:
            if (to := getattr(instruction, "to", None)) and not to.on_device:
                writers.setdefault(to, set()).add("device")
        for task in step.tasks:
            for work in task.work:
                writers.setdefault(work.to, set()).add(task.number)
        assert all(len(by) == 1 for by in writers.values())
        done = [w for task in step.tasks for w in task.work]
        assert sum(isinstance(w, HostAttend) for w in done) == 8
        assert sum(isinstance(w, HostFeed) for w in done) == 12
