"""Stop strings: however the text is split, what stands before the first of them is given, and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotset.core.errors import RequestError
from hotset.serve.request import StopStrings, check_stop


def cut(text, stops):
    """The definition: read character by character until the text ends with a stop string."""
    for end in range(len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))], True
    return text, False


@given(
    pieces=st.lists(st.text("abc", max_size=6), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_any_split_gives_the_text_before_the_first_stop(pieces, stops):
    finder = StopStrings(stops)
    streamed = ""
    expected, stopped = cut("".join(pieces), stops)
    for piece in pieces:
        streamed += finder.push(piece)
        assert expected.startswith(streamed)  # what was given out is never taken back
    streamed += finder.flush()
    assert (streamed, finder.stopped) == (expected, stopped)


@given(
    pieces=st.lists(st.text(max_size=4), max_size=8),
    stops=st.lists(st.text(min_size=1, max_size=3), max_size=2),
)
def test_any_characters(pieces, stops):
    finder = StopStrings(stops)
    streamed = "".join(map(finder.push, pieces)) + finder.flush()
    assert streamed == cut("".join(pieces), stops)[0]


def test_text_is_held_back_only_while_a_stop_may_be_forming():
    finder = StopStrings(["END"])
    assert finder.push("the E") == "the "
    assert finder.push("N") == ""
    assert finder.push("T") == "ENT"
    assert finder.push("END, and more") == ""
    assert finder.stopped
    assert finder.push("more") == ""


def test_check_stop():
    assert check_stop("one") == ("one",)
    assert check_stop(["a", "b"]) == ("a", "b")
    for wrong in ([""], [3], "", ["a", ""]):
        with pytest.raises(RequestError, match="stop"):
            check_stop(wrong)
