"""Unique jobs: what a policy may say, and the keys that follow from arguments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs.errors import ArgumentsError, DeclarationError
from sqla_jobs.rules.keys import KeyOf
from sqla_jobs.rules.unique import MAX_KEY, KeyMaker, Unique

A_LENGTH = "must be a timedelta or a number of seconds, from"
NO_MAX_DELAY = (
    "on_conflict='replace' needs max_delay=: the seconds after the first enqueue beyond which replacements do not "
    "delay the job, such as max_delay=600; or None for no bound, with which a job that is replaced again and again "
    "never starts"
)
NOT_REPLACE = (
    "max_delay=None is only for on_conflict='replace', and on_conflict is 'update': leave it out, or write "
    "on_conflict='replace'"
)


def parity(arguments: Mapping[str, Any]) -> int:
    return int(arguments["n"]) % 2


@pytest.mark.parametrize(
    ("unique", "stored", "changes"),
    [
        (Unique(), (None, "return", None, None), False),
        (Unique("a", on_conflict="raise"), (("a",), "raise", None, None), False),
        (Unique(["a", "b"], on_conflict="update", per=0.001), (("a", "b"), "update", None, 0.001), True),
        (Unique([], on_conflict="replace", max_delay=0), ((), "replace", 0, None), True),
        (Unique(parity, on_conflict="replace", max_delay=None), (parity, "replace", None, None), True),
        (
            Unique(on_conflict="replace", max_delay=timedelta(1), per=timedelta(2)),
            (None, "replace", 86400, 172800),
            True,
        ),
    ],
)
def test_what_a_policy_says(unique: Unique, stored: tuple[object, ...], changes: bool) -> None:
    assert (unique.key, unique.on_conflict, unique.max_delay, unique.per) == stored
    assert unique.changes == changes


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"key": 5}, "key must be an argument's name, a list of names or a function, got 5"),
        ({"on_conflict": "ignore"}, "on_conflict must be one of return, raise, replace, update, got 'ignore'"),
        ({"on_conflict": "replace"}, NO_MAX_DELAY),
        ({"on_conflict": "update", "max_delay": None}, NOT_REPLACE),
        ({"on_conflict": "replace", "max_delay": -1}, f"max_delay {A_LENGTH} 0 to 100 years, got -1"),
        ({"per": 0}, f"per {A_LENGTH} 1 ms to 100 years, got 0"),
    ],
)
def test_what_no_policy_can_be_is_refused(options: Any, reason: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        Unique(**options)
    assert str(caught.value) == reason


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


WHAT = "mail: the value of the key= of its Unique"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({1}, f"{WHAT} must be JSON-able, such as a text or a list of numbers, got set: "),
        ({1: 2, "a": 3}, f"{WHAT} must be JSON-able, such as a text or a list of numbers, got dict: "),
        (float("nan"), f"{WHAT} holds NaN"),
        ("\ud800", rf"{WHAT}='\ud800' is not valid Unicode"),
    ],
)
def test_a_function_that_returns_no_json_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        key_of(lambda _: value, {})
    assert str(caught.value).startswith(reason)


def test_a_name_that_is_no_argument_of_the_task_is_refused_with_those_that_are() -> None:
    with pytest.raises(DeclarationError) as caught:
        key_of(["n", "test"], {})
    assert str(caught.value) == "mail: key='test' names no argument of the task; it takes: cc, n, text"
