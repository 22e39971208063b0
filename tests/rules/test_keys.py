"""Keys of limits and of unique jobs: which arguments they name, and how they are written."""

from __future__ import annotations

import pytest

from sqla_jobs.rules.keys import key_in, number_alike


@pytest.mark.parametrize(
    ("key", "alike"),
    [
        ("1.0", "1"),
        ("1e23", "100000000000000000000000"),
        ("1.5e300", f"15{'0' * 299}"),
        ('"1.0"', '"1.0"'),
        ('[1.0,"1.0",{"b":3.0,"a":-4.5}]', '[1,"1.0",{"a":-4.5,"b":3}]'),
    ],
)
def test_whole_numbers_are_one_key_however_they_are_written(key: str, alike: str) -> None:
    assert number_alike(key) == alike


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("17", 17),
        ('["a",1]', ["a", 1]),
        ("ada@example.com", "ada@example.com"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_key_is_typed_as_json_or_as_it_is(text: str, key: object) -> None:
    assert key_in(text) == key
