"""Unique jobs: what a policy may say, and the keys that follow from arguments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.rules.keys import KeyOf
from sqla_jobs.rules.unique import MAX_KEY, KeyMaker, Unique


def parity(arguments: Mapping[str, Any]) -> int:
    return int(arguments["n"]) % 2


def key_of(key: KeyOf | None, arguments: Mapping[str, Any], sensitive: Collection[str] = ()) -> str | None:
    return KeyMaker("mail", Unique(key).key, frozenset(["n", "text", "cc"]), frozenset(sensitive))(arguments)


# printf '["mail",1]' | sha256sum
HASH_OF_1 = "unique:sha256:e6d46aabab97915f93866e7a31223bb96b483313cc325bd35ef0b217b587c6a4:mail"
HASH_OF_TEXT = "unique:sha256:31ea5c3677c453b85b30a24fdf2b4999825af995dca88f7c42f488f6a862d086:mail"


@pytest.mark.parametrize(
    ("key", "arguments", "sensitive", "expected"),
    [
        (None, {"text": "é", "n": 1}, (), 'unique:["mail",{"n":1,"text":"é"}]'),
        ("n", {"text": "a", "n": 1}, ["text"], 'unique:["mail",{"n":1}]'),
        (["n", "cc"], {"text": "a", "n": 1}, (), 'unique:["mail",{"n":1}]'),  # one that was left out
        ([], {"n": 1}, (), 'unique:["mail",{}]'),
        (parity, {"n": 3}, (), 'unique:["mail",1]'),
        (parity, {"n": 3}, ["text"], HASH_OF_1),  # a function may show any argument
        ("text", {"text": "a"}, ["text"], HASH_OF_TEXT),
    ],
)
def test_arguments_make_a_key(key: Any, arguments: dict[str, Any], sensitive: list[str], expected: str) -> None:
    assert key_of(key, arguments, sensitive) == expected


def test_a_key_of_more_than_500_characters_is_hashed() -> None:
    room = MAX_KEY - len('unique:["mail",{"text":""}]')
    assert key_of("text", {"text": "é" * room}) == f'unique:["mail",{{"text":"{"é" * room}"}}]'
    assert str(key_of("text", {"text": "é" * room + "é"})).startswith("unique:sha256:")


@pytest.mark.parametrize("value", [{1}, {1: 2, "a": 3}, float("nan"), "\ud800"])
def test_a_function_that_returns_no_json_is_refused(value: object) -> None:
    with pytest.raises(ArgumentsError):
        key_of(lambda _: value, {})
