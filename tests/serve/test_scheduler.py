"""The scheduler as a pure function, and driven over many steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotset.serve.scheduler import ALONE_ROWS, Pace, Want, schedule

WANTS = st.lists(st.builds(Want, rows=st.integers(1, 3000), prompt=st.just(True)), max_size=6).flatmap(
    lambda prompts: st.permutations(prompts + [Want(1, False)] * 3)
)


@given(wants=WANTS, prompt_rows=st.integers(1, 600), most_rows=st.integers(1, 600))
def test_a_step_keeps_to_its_limits_and_leaves_no_room_unused(wants, prompt_rows, most_rows):
    taken = schedule(wants, prompt_rows=prompt_rows, most_rows=most_rows)
    assert all(0 <= rows <= want.rows for want, rows in zip(wants, taken, strict=True))
    answers = [rows for want, rows in zip(wants, taken, strict=True) if not want.prompt]
    prompts = [rows for want, rows in zip(wants, taken, strict=True) if want.prompt]
    assert sum(answers) == min(len(answers), most_rows)
    wanted = sum(want.rows for want in wants if want.prompt)
    assert sum(prompts) == min(wanted, prompt_rows, most_rows - sum(answers))
    # Those first in line are served first: at most one prompt has a part of what it wants.
    full = [rows for want, rows in zip(wants, taken, strict=True) if want.prompt and rows < want.rows]
    assert sum(rows > 0 for rows in full) <= 1


@given(
    prompts=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    answers=st.integers(0, 4),
    prompt_rows=st.integers(1, 64),
)
def test_nobody_starves(prompts, answers, prompt_rows):
    """Every answer has a row in every step, every prompt in one of as many steps as there are prompts."""
    left = dict(enumerate(prompts))
    order = list(left) + [-1 - i for i in range(answers)]
    waited = dict.fromkeys(left, 0)
    steps = 0
    while left:
        wants = [Want(left[i], True) if i >= 0 else Want(1, False) for i in order]
        taken = schedule(wants, prompt_rows=prompt_rows, most_rows=512)
        served = [i for i, rows in zip(order, taken, strict=True) if rows]
        assert set(range(-answers, 0)) <= set(served)
        for i, rows in zip(order, taken, strict=True):
            if i >= 0:
                waited[i] = 0 if rows else waited[i] + 1
                assert waited[i] < len(prompts)
                left[i] -= rows
        left = {i: rows for i, rows in left.items() if rows}
        order = [i for i in order if i not in served] + [i for i in served if i < 0 or i in left]
        steps += 1
    assert steps == -(-sum(prompts) // prompt_rows)


@pytest.mark.parametrize(
    ("fixed", "row"), [(0.09, 0.01), (0.003, 0.0005), (0.4, 0.03), (0.001, 0.00002), (0.09, 0.0001), (2, 0.2)]
)
@pytest.mark.parametrize("answers", [1, 4])
@pytest.mark.parametrize("free", [0, 8])
@pytest.mark.parametrize("alone_first", [False, True])
def test_steps_beside_answers_stay_short(fixed, row, answers, free, alone_first):
    """`fixed` seconds read the weights, each row beyond the `free` first costs `row` more."""

    def seconds(rows):
        return fixed + row * max(0, rows - free)

    pace = Pace()
    if alone_first:
        assert pace.prompt_rows(0) == ALONE_ROWS
        pace.observe(0, ALONE_ROWS, seconds(ALONE_ROWS))
    pace.observe(0, 3, seconds(3))  # a short prompt: its speed says nothing of longer ones
    for _ in range(3):
        pace.observe(answers, 0, seconds(answers))
    quiet = seconds(answers)
    for _ in range(50):
        rows = pace.prompt_rows(answers)
        took = seconds(rows + answers)
        assert took <= 3 * quiet + 0.25 or rows == 1
        pace.observe(answers, rows, took)
    # In the end the time is used: half of what may be, unless the most rows take less.
    assert took >= quiet + 0.5 * (quiet + 0.15) or rows == ALONE_ROWS


def test_a_slower_machine_gets_shorter_steps():
    pace = Pace()
    for slower in (1, 4):
        for _ in range(20):
            pace.observe(1, 0, 0.05)
            rows = pace.prompt_rows(1)
            pace.observe(1, rows, 0.05 + rows * 0.002 * slower)
    assert 0.2 < 0.05 + rows * 0.008 < 0.3


@given(
    few=st.floats(0.002, 0.03),
    ratio=st.floats(1, 2.5),
    context=st.floats(0, 0.3),
    before=st.lists(st.integers(2, 8), max_size=30),
    answers=st.integers(1, 4),
)
def test_a_long_prompt_after_short_ones_keeps_nobody_waiting(few, ratio, context, before, answers):
    """Up to 8 rows are faster by `ratio`; late rows of the prompt, which attend to more, take longer."""
    fixed = max(0.05, few * answers)

    def seconds(rows, share=0.0):
        return max(fixed, rows * few if rows <= 8 else rows * few * ratio * (1 + context * share))

    pace = Pace()
    for rows in before:
        pace.observe(answers, 0, fixed)
        pace.observe(1, rows - 1, seconds(rows))
    pace.observe(answers, 0, fixed)
    left = 2000
    while left > 0:
        rows = min(left, pace.prompt_rows(answers))
        took = seconds(rows + answers, 1 - left / 2000)
        assert took <= 3 * fixed + 0.25 or rows == 1 or pace.row is None
        pace.observe(answers, rows, took)
        left -= rows


def test_one_long_stop_of_the_machine_is_forgotten():
    pace = Pace()
    for _ in range(20):
        pace.observe(1, 0, 0.05)
        pace.observe(1, 20, 0.3)
    usual = pace.prompt_rows(1)
    pace.observe(1, 20, 30.0)
    for _ in range(40):
        rows = pace.prompt_rows(1)
        pace.observe(1, rows, 0.015 * (1 + rows))
    assert pace.prompt_rows(1) >= usual // 3
    for _ in range(60):  # prompts alone
        pace.observe(0, ALONE_ROWS, 0.014 * ALONE_ROWS)
    assert pace.prompt_rows(1) >= usual
