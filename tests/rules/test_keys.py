"""Keys of limits and of unique jobs: which arguments they name, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sqla_jobs.rules.keys import KeyOf, argument_names, key_in, number_alike


def of_all(arguments: Mapping[str, Any]) -> Any:
    return arguments


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
    ("key", "names"), [("user", ("user",)), (["user", "day"], ("user", "day")), ((), ()), (of_all, ())]
)
def test_a_key_names_arguments(key: KeyOf, names: tuple[str, ...]) -> None:
    assert argument_names("key", key) == names


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
