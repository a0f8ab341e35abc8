"""Drafts as pure functions: what they propose, how likely they are held to be, how many rows they get."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotset.serve.draft import MOST, Drafter, find
from hotset.serve.scheduler import FEW_ROWS, Pace, share

TEXTS = st.lists(st.integers(0, 3), max_size=60).map(lambda ids: np.array(ids, np.int32))
CHANCES = st.lists(
    st.lists(st.floats(0.01, 1), max_size=MOST).map(lambda chances: sorted(chances, reverse=True)),
    max_size=10,
)


def same_before(text, place):
    """How many tokens before a place are the text's last ones, up to 16."""
    length = 0
    while length < min(place, 16) and text[place - 1 - length] == text[len(text) - 1 - length]:
        length += 1
    return length


@given(text=TEXTS)
def test_the_longest_and_latest_place_is_found(text):
    place, same = find(text)
    lengths = [same_before(text.tolist(), at) for at in range(len(text))]
    assert same == max(lengths, default=0)
    assert place == (max(at for at, n in enumerate(lengths) if n == same) if same else len(text))


@given(text=TEXTS, count=st.integers(1, MOST))
def test_a_draft_goes_on_as_the_text_did(text, count):
    drafter = Drafter()
    chances = drafter.chances(text)
    place, same = find(text)
    assert len(chances) == (MOST if same else 0)
    assert chances == sorted(chances, reverse=True)
    assert all(0 < chance < 1 for chance in chances)
    if chances:
        longer = text.tolist()
        draft = drafter.draft(text, count)
        for i, token in enumerate(draft.tolist()):
            assert token == longer[place + i]  # also where that is of the draft itself
            longer.append(token)


@given(text=TEXTS.filter(len), more=TEXTS)
def test_what_is_seen_is_learnt(text, more):
    """A place is followed as long as the text goes on as there; chances stay chances."""
    drafter = Drafter()
    followed = False
    for token in more.tolist():
        chances = drafter.chances(text)
        if followed:  # the place is still one with the most same tokens
            assert chances
            assert drafter._same >= find(text)[1]
        expected = drafter.draft(text, 1)[0] if chances else None
        drafter.see(text, token)
        followed = token == expected
        text = np.append(text, np.int32(token))


def test_drafts_that_fail_are_held_for_unlikely_and_tried_again_once_they_would_be_right():
    rng = np.random.default_rng(0)
    drafter, text = Drafter(), np.array([9], np.int32)

    def go_on(tokens):
        nonlocal text
        given = []
        for token in tokens:
            given.append(share([drafter.chances(text)])[0])
            drafter.see(text, token)
            text = np.append(text, np.int32(token))
        return given

    # A token over and over, never followed by the same one.
    go_on([t for other in range(2000, 2050) for t in (1, other)])
    assert sum(go_on([t for other in range(3000, 3010) for t in (1, other)])) == 0
    repeated = (4000 + rng.permutation(100)).tolist()
    assert sum(go_on(repeated)) == 0
    assert go_on(repeated)[-1] == MOST


def test_most_are_limited():
    text = np.array([1, 2, 3, 1, 2, 3], np.int32)
    assert [len(Drafter().chances(text, most)) for most in (-1, 0, 1, 5, 100)] == [0, 0, 1, 5, MOST]


@given(chances=CHANCES, cost_ratio=st.floats(0, 4))
def test_rows_are_shared(chances, cost_ratio):
    counts = share(chances, cost_ratio)
    assert len(counts) == len(chances)
    assert all(0 <= n <= len(row) for n, row in zip(counts, chances, strict=True))
    if len(chances) > 1 and sum(counts):
        assert len(chances) + sum(counts) <= FEW_ROWS
    given = [chance for n, row in zip(counts, chances, strict=True) for chance in row[:n]]
    left = [chance for n, row in zip(counts, chances, strict=True) for chance in row[n:]]
    if given:
        assert not left or min(given) >= max(left)


@pytest.mark.parametrize(
    ("chance", "least", "most"), [(0.0, 0, 0), (0.3, 0, 0), (0.6, 2, 4), (0.9, 6, MOST), (1.0, MOST, MOST)]
)
def test_likely_drafts_are_long(chance, least, most):
    assert least <= share([[chance**i for i in range(1, MOST + 1)]])[0] <= most


def test_a_full_batch_has_no_drafts():
    sure = [1.0] * MOST
    assert share([sure] * FEW_ROWS) == [0] * FEW_ROWS
    assert sum(share([sure] * (FEW_ROWS - 2))) == 2
    assert share([[], sure])[0] == 0


def test_rows_that_turn_out_dear_are_not_drafted_until_later():
    pace = Pace()
    for _ in range(10):
        pace.observe(1, 0, 0.1)
    likely = [[0.8**i for i in range(1, MOST + 1)]]
    assert share(likely, pace.cost_ratio)[0] > 0
    for _ in range(40):
        pace.observe(4, 0, 0.4)
    assert share(likely, pace.cost_ratio) == [0]
    for _ in range(300):
        pace.observe(1, 0, 0.1)
    assert share(likely, pace.cost_ratio)[0] > 0
