"""Checks of values that are to be stored. They refuse values that the database cannot store, and give the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.rules.wording import duration

CENTURY = 100 * 365 * 86400.0
"""The longest duration that is accepted, in seconds."""
DAY = 86400.0
INSTANT = 0.001
"""The shortest duration that is accepted where 0 is not, in seconds."""
MAX_ID = 9_000_000_000_000_000_000
"""The maximum id of a row. The server and drivers can add 1 to it without overflow."""
MAX_DEPTH = 100
"""Maximum depth of nested JSON that is stored or shown."""
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
MOMENTS = (datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
"""The range of times that may be stored. Every driver can read these times in every time zone."""


def check_seconds(
    what: str, length: object, *, least: float = 0.0, most: float = CENTURY, error: type[JobsError] = ArgumentsError
) -> float:
    """Return a duration in seconds. Raises `error` unless it is a number or timedelta from `least` to `most`."""
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not least <= seconds <= most:
        limits = f"from {duration(least) if least else 0} to {'100 years' if most == CENTURY else duration(most)}"
        raise error(f"{what} must be a timedelta or a number of seconds, {limits}, got {length!r:.60}")
    return float(seconds)


def check_integer(what: str, number: object, *, least: int, most: int, error: type[JobsError] = ArgumentsError) -> int:
    """Return `number`. Raises `error` unless it is an integer from `least` to `most`."""
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise error(f"{what} must be an integer from {least:,} to {most:,}, got {number!r:.60}")
    return number


def check_id(number: int) -> int:
    """Return the id of a row. Raises `ArgumentsError` for a number that no row can have as its id."""
    if isinstance(number, bool) or abs(number) > MAX_ID:
        raise ArgumentsError(f"{number!r:.60} is not an id: ids are integers, and go up to {MAX_ID}")
    return number


def check_name(what: str, name: object, *, without: str = "", error: type[JobsError] = ArgumentsError) -> str:
    """Return `name`. Raises `error` if it is not text, is empty or too long, or contains a character in `without`."""
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable() or set(name) & set(without):
        also = f" without {' and '.join(map(repr, without))}" if without else ""
        raise error(f"{what} must be 1 to 200 printable characters{also}, got {name!r:.60}")
    return name


def check_queue(name: object, *, error: type[JobsError] = ArgumentsError) -> str:
    """Return the name of a queue. Raises `error` for a name that `--queues` could not express."""
    return check_name("queue", name, without="=,", error=error)


def check_text(what: str, text: str) -> str:
    """Return `text`. Raises `ArgumentsError` if PostgreSQL cannot store it."""
    if "\x00" in text:
        raise ArgumentsError(f"{what}={text!r:.60} holds a NUL character, which PostgreSQL cannot store: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentsError(
            f"{what}={text!r:.60} is not valid Unicode: it holds half of a surrogate pair; correct the text"
        ) from None
    return text


def check_json(what: str, value: object) -> None:
    """Raise `ArgumentsError` for JSON that PostgreSQL cannot store unchanged."""
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
    if isinstance(value, dict):
        found = cast("Mapping[str, Any]", value)
        return [*found, *found.values()]
    if isinstance(value, list):
        return cast("list[object]", value)
    if isinstance(value, str):
        check_text(what, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ArgumentsError(
            f"{what} holds NaN or a number beyond 1.8e308, which JSON does not have: give a finite number"
        )
    return ()


def read_moment(what: str, text: str) -> datetime:
    """Parse a time, in UTC unless it has an offset. Raises `ArgumentsError` if it is invalid or outside `MOMENTS`."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment.astimezone(UTC)
        return check_moment(what, moment)
    except (ValueError, OverflowError):
        raise ArgumentsError(f"{what}={text!r:.40} is not a time: write one such as 2026-03-29T14:30, in UTC") from None


def read_duration(what: str, text: str) -> timedelta:
    """Parse a duration such as 90s, 15m, 12h, 7d or 2w. Raises `ArgumentsError` if it is invalid."""
    parts = re.fullmatch(r"(\d{1,5})([smhdw])", text)
    if parts is None:
        raise ArgumentsError(f"{what}={text!r:.40} is not a duration: write 90s, 15m, 12h, 7d or 2w")
    return timedelta(**{_UNITS[parts[2]]: int(parts[1])})


def read_time(what: str, text: str) -> datetime | timedelta:
    """Parse a duration, or a time as `read_moment` does. Raises `ArgumentsError` if it is neither."""
    if text[-1:] in _UNITS:
        return read_duration(what, text)
    try:
        return read_moment(what, text)
    except ArgumentsError as error:
        raise ArgumentsError(f"{error}, or a time from now or ago such as 2h") from None


def check_moment(what: str, moment: datetime) -> datetime:
    """Return `moment`. Raises `ArgumentsError` if it is outside the range `MOMENTS`."""
    first, end = MOMENTS
    if not first <= moment < end:
        raise ArgumentsError(
            f"{what}={moment.isoformat():.40} is out of range: write a time from the year 1000 to 8999"
        )
    return moment


def read_priority(text: str) -> int:
    """Parse a priority without checking its range. Raises `ArgumentsError` if it is not an integer."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentsError(
            f"priority must be an integer from -10 to 10 (lower runs first), got {text!r:.40}"
        ) from None


def read_number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    """Parse a number. Raises `ArgumentsError` if the text is not a number."""
    try:
        return kind(text)
    except ValueError:
        raise ArgumentsError(f"{name} must be a number, got {text!r:.40}") from None


def read_id(text: str) -> int:
    """Parse an id. Raises `ValueError` if the text is not an id."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID):
        raise ValueError(f"{text!r:.40} is not an id")
    return int(text)
