"""Every operation keeps each character's author: here the template writes capitals, users small letters."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotset.tokenizer.jinja import compiled
from hotset.tokenizer.written import Written, by_template, joined, named, template_wrote

THEIRS, OURS = "ab<, ", "AB[ \n"
pieces = st.lists(st.text(OURS, max_size=4).map(by_template) | st.text(THEIRS, max_size=4), max_size=6).map(
    joined
)
separators = st.sampled_from(["A", "b", "AB", "a<", " ", "XX"]) | st.text(
    OURS + THEIRS, min_size=1, max_size=2
)
numbers = st.integers(-8, 8)


def authors(text: str) -> list[tuple[str, bool]]:
    return [(c, template_wrote(text, i, i + 1)) for i, c in enumerate(text)]


OPERATIONS: dict[str, Callable[[Any, str, int], Any]] = {
    "slice": lambda text, _, n: text[n:],
    "step": lambda text, _, n: text[:: n or 1],
    "strip": lambda text, sep, _: text.strip(sep),
    "strip spaces": lambda text, sep, _: text.strip(),
    "lstrip": lambda text, sep, _: text.lstrip(sep),
    "rstrip": lambda text, sep, _: text.rstrip(),
    "split": lambda text, sep, n: text.split(sep, n),
    "split at spaces": lambda text, sep, n: text.split(None, n),
    "rsplit": lambda text, sep, n: text.rsplit(sep, n),
    "rsplit at spaces": lambda text, sep, n: text.rsplit(None, n),
    "splitlines": lambda text, sep, n: text.splitlines(n > 0),
    "partition": lambda text, sep, n: text.partition(sep),
    "rpartition": lambda text, sep, n: text.rpartition(sep),
    "remove": lambda text, sep, n: text.replace(sep, "", n),
    "replace": lambda text, sep, n: text.replace(sep, "ab", n),
    "removeprefix": lambda text, sep, n: text.removeprefix(sep),
    "removesuffix": lambda text, sep, n: text.removesuffix(sep),
    "times": lambda text, sep, n: text * n,
    "add": lambda text, sep, n: text + "ab",
    "add to": lambda text, sep, n: "ab" + text,
    "join": lambda text, sep, n: text.join(["a", by_template("A"), "b"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_authors_stay_with_their_characters(name: str) -> None:
    operation = OPERATIONS[name]

    @given(pieces, separators, numbers)
    def check(text: Written, sep: str, n: int) -> None:
        plain = operation(str.__str__(text), sep, n)
        found = operation(text, sep, n)
        for one, other in zip(
            found if isinstance(found, list | tuple) else [found],
            plain if isinstance(plain, list | tuple) else [plain],
            strict=True,
        ):
            assert str.__str__(one) == other
            for character, ours in authors(one):
                if character.isalpha() or character in "<[":
                    assert ours == (character in OURS)

    check()


@given(pieces, st.integers(0, 30), st.integers(0, 30))
def test_each_character_of_a_slice_is_that_of_the_whole(text: Written, start: int, end: int) -> None:
    assert authors(text[start:end]) == authors(text)[start:end]


def test_case_changes_keep_authors_where_characters_stay_one() -> None:
    text = joined([by_template("<|User|>"), "Hi ß"])
    assert template_wrote(text.lower(), 0, 8)
    assert not isinstance(text.upper(), Written), "ß becomes two characters"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("A{{ m }}B", "A.....B"),
        ("{{ 'A' ~ m ~ 'B' }}", "A.....B"),
        ("{{ 'A' + m }}", "A....."),
        ("{{ ['A', m] | join('-') }}", "A-....."),
        ("{{ ['A', m] | join }}", "A....."),
        ("{{ 'A%sB%%' % m }}", "A.....B."),
        ("{{ 'A%(x)s' % {'x': m} }}", "A....."),
        ("{{ 'A%s' | format(m) }}", "A....."),
        ("{{ 'A{}B{{' .format(m) }}", "A.....B{"),
        ("{{ 'A{x}B{0}'.format(m, x=m) }}", "A.....B....."),
        ("{{ ' A ' | trim ~ m | trim }}", "A....."),
        ("{{ 'xAx' | replace('x', m) }}", ".....A....."),
        ("{{ 'ABC'[1:] | lower | upper }}", "BC"),
        ("{% set x %}A{{ m }}{% endset %}{{ x }}B", "A.....B"),
        ("{% macro f(x) %}A{{ x }}{{ caller() }}{% endmacro %}{% call f(m) %}B{% endcall %}", "A.....B"),
        ("{% filter trim %} A{{ m }} {% endfilter %}", "A....."),
        ("{% set n = namespace(x='A') %}{% set n.x = n.x + m %}{{ n.x }}", "A....."),
        ("{{ {'k': 'A'}['k'] }}{{ m | default('B') }}{{ none_such | default('C') }}", "A.....C"),
        ("{{ 'A' if m else 'B' }}{{ ('A', 'B') | last }}{{ 'AB' | first }}", "AB."),
        ("{{ m.replace('h', 'A') }}{{ m | upper }}{{ {'k': 'A'} }}{{ 'A' | tojson }}", "." * 23),
        ("{{ m.split('e') | join('A') }}{{ 'A' * 2 }}{{ 'A B'.split() | join(m) }}", ".A...AAA.....B"),
    ],
)
def test_jinja_keeps_authors(source: str, expected: str) -> None:
    text = compiled(source).render(m="hello")
    assert isinstance(text, Written)
    shown = "".join(c if template_wrote(text, i, i + 1) else "." for i, c in enumerate(text))
    assert shown == expected
    assert str.__str__(text) == plain_jinja(source)


def plain_jinja(source: str) -> str:
    import json

    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = json.dumps
    return environment.from_string(source).render(m="hello")


def test_a_name_counts_only_inside_what_the_template_wrote() -> None:
    text = joined([by_template("<|"), named("user"), by_template("|>"), "user"])
    assert template_wrote(text, 0, 8)
    assert not template_wrote(text, 2, 6)
    assert not template_wrote(text, 6, 9)
    assert not template_wrote(text, 3, 3)
