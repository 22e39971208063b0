"""What people write, read before it goes to the database: what that cannot hold is refused with the reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from sqla_jobs.errors import ArgumentsError

MAX_ID = 9_000_000_000_000_000_000
"""Of any row: one more is a number that the server and drivers can take too."""
MAX_DEPTH = 100
"""Levels of nested JSON in rows that people write, and in what is shown."""
MOMENTS = (datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
"""Between these lie the times that the database takes: every driver can read them in every time zone."""


def check_text(what: str, text: str) -> str:
    """The same text. Raises `ArgumentsError` for one that PostgreSQL cannot hold."""
    if "\x00" in text:
        raise ArgumentsError(f"{what}={text!r:.60} holds a NUL character, which PostgreSQL cannot store: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentsError(
            f"{what}={text!r:.60} is not valid Unicode: it holds half of a surrogate pair; write it anew"
        ) from None
    return text


def check_json(what: str, value: object) -> None:
    """Raises `ArgumentsError` for JSON that PostgreSQL cannot hold as it is."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for one in level:
            below += _parts(what, one)
        if not below:
            return
        level = below
    raise ArgumentsError(f"{what} is nested more than {MAX_DEPTH} levels deep: store the data and pass its key")


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
            raise ArgumentsError(
                f"{what} holds a number beyond 1.8e308 or NaN, which JSON does not have: write another one"
            )
        case _:
            pass
    return ()


def read_moment(what: str, text: str) -> datetime:
    """A time in UTC. Raises `ArgumentsError`, also for one that the database does not take."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment.astimezone(UTC)
        return check_moment(what, moment)
    except (ValueError, OverflowError):
        raise ArgumentsError(f"{what}={text!r:.40} is not a time: write one such as 2026-03-29T14:30, in UTC") from None


def check_moment(what: str, moment: datetime) -> datetime:
    """The same. Raises `ArgumentsError` for one that the database does not take."""
    first, end = MOMENTS
    if not first <= moment < end:
        raise ArgumentsError(
            f"{what}={moment.isoformat():.40} is out of range: write a time from the year 1000 to 8999"
        )
    return moment


def read_id(text: str) -> int:
    """A whole number that an id can be. Raises `ValueError`."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID):
        raise ValueError(f"{text!r:.40} is not an id")
    return int(text)
