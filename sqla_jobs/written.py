"""What people write, read before it goes to the database: what that cannot hold is refused with the reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqla_jobs.errors import ArgumentsError

MAX_ID = 2**63 - 1
_DEEPEST = 200


def check_text(what: str, text: str) -> str:
    """The same text. Raises `ArgumentsError` for one that PostgreSQL cannot hold."""
    if "\x00" in text:
        raise ArgumentsError(f"{what}={text!r:.60} holds a NUL character, which PostgreSQL cannot store: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentsError(
            f"{what}={text!r:.60} is no Unicode text, since it holds half of a surrogate pair: write it anew"
        ) from None
    return text


def check_json(what: str, value: object) -> None:
    """Raises `ArgumentsError` for JSON that PostgreSQL cannot hold as it is."""
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        below: list[object] = []
        for one in level:
            below += _parts(what, one)
        if not below:
            return
        level = below
    raise ArgumentsError(f"{what} is nested more than {_DEEPEST} levels deep: store the data and pass its key")


def _parts(what: str, value: object) -> Iterable[object]:
    match value:
        case dict():
            found = cast("Mapping[str, Any]", value)
            return [*found, *found.values()]
        case list():
            return cast("list[object]", value)
        case str():
            check_text(what, value)
        case float() if not math.isfinite(value):
            raise ArgumentsError(f"{what} holds a number beyond 1.8e308 or NaN, which is no JSON: write another one")
        case _:
            pass
    return ()


def read_moment(what: str, text: str) -> datetime:
    """A time in UTC. Raises `ArgumentsError`, also a day before the calendar ends: nobody can count on from there."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment.astimezone(UTC)
        _ = moment - timedelta(days=1), moment + timedelta(days=1)
    except (ValueError, OverflowError):
        raise ArgumentsError(
            f"{what}={text!r:.40} is no time: write a time such as 2026-03-29T14:30, in UTC, "
            "between 0001-01-02 and 9999-12-30"
        ) from None
    return moment


def read_id(text: str) -> int:
    """A whole number that an id can be. Raises `ValueError`."""
    number = int(text)
    if not -MAX_ID <= number <= MAX_ID:
        raise ValueError(f"{text!r:.40} is no id")
    return number
