"""Keys of limits and of unique jobs: which arguments they name, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sqla_jobs.errors import DeclarationError
from sqla_jobs.rules.keys import KeyOf, argument_names, check_arguments, key_in, may_show, number_alike


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


@pytest.mark.parametrize("key", [5, {"user"}, ["user", 1]])
def test_what_names_no_arguments_is_refused(key: object) -> None:
    with pytest.raises(DeclarationError):
        argument_names("send: key", key)


def test_a_name_of_no_argument_is_refused() -> None:
    check_arguments("key", ["user", "day"], ["user", "day"])
    with pytest.raises(DeclarationError, match="'usr'"):
        check_arguments("send: key", ["user", "usr"], ["user", "day"])


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


@pytest.mark.parametrize(
    ("key", "hidden", "may"),
    [
        (None, {"password"}, True),
        (of_all, {"password"}, True),
        (None, set[str](), False),
        ("password", {"password"}, True),
        ("user", {"password"}, False),
    ],
)
def test_a_key_shows_what_it_is_made_of(key: KeyOf | None, hidden: set[str], may: bool) -> None:
    assert may_show(key, frozenset(hidden)) == may
