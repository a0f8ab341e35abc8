"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotset.cli.options import parse_size
from hotset.core.errors import RequestError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("8GiB", 8 << 30),
        ("8GB", 8 * 10**9),
        ("8192MiB", 8 << 30),
        (" 1.5 gib ", 3 << 29),
        ("24Gi", 24 << 30),
        (".5TB", 5 * 10**11),
        ("1048576", 1 << 20),
        ("2.kb", 2000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "8 gigs", "-1GiB", "1e9", "8GiB8", "8G", "nan", "٣GiB", "9999999999TiB"]
)
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(RequestError, match="8GiB"):
        parse_size(text)


@given(st.integers(0, (1 << 53) // 1024**2), st.sampled_from(["B", "KiB", "MiB", "KB", "MB"]))
def test_whole_numbers_are_exact(number: int, unit: str) -> None:
    factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "KB": 1000, "MB": 10**6}[unit]
    assert parse_size(f"{number}{unit}") == number * factor
