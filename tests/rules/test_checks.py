"""What may be stored, and what is said of what may not."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from sqla_jobs.errors import ArgumentsError, ConfigurationError
from sqla_jobs.rules.checks import (
    CENTURY,
    DAY,
    INSTANT,
    MAX_ID,
    check_integer,
    check_json,
    check_moment,
    check_name,
    check_queue,
    check_seconds,
    check_text,
    read_id,
    read_moment,
    read_number,
    read_priority,
)


def nested(levels: int) -> Any:
    value: Any = 1
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


delay = partial(check_seconds, "delay")
poll = partial(check_seconds, "poll", least=INSTANT, most=DAY, error=ConfigurationError)
total = partial(check_integer, "total", least=-10, most=2000)
signal = partial(check_name, "signal")
queue = partial(check_queue, error=ConfigurationError)
reason = partial(check_text, "reason")
args = partial(check_json, "args")
until = partial(check_moment, "until")
run_at = partial(read_moment, "run_at")
rate = partial(read_number, "rate", kind=float)
ERRORS: dict[Any, type[Exception]] = {poll: ConfigurationError, queue: ConfigurationError, read_id: ValueError}
JSON: list[object] = [1.5, 10**400, {"a": [1, {"é": "😀"}], "b": None}, [], nested(99)]
NOON_IN_PARIS = datetime(2026, 3, 29, 12, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("check", "value", "stored"),
    [
        *((delay, seconds, seconds) for seconds in (0, 0.5, CENTURY)),
        (delay, timedelta(minutes=1), 60),
        *((poll, seconds, seconds) for seconds in (INSTANT, DAY)),
        *((total, number, number) for number in (-10, 0, 2000)),
        *((signal, name, name) for name in ("X", "é ü=,", "x" * 200)),
        (queue, "MaX mail", "MaX mail"),
        (reason, "é", "é"),
        *((args, json, None) for json in JSON),
        (until, NOON_IN_PARIS, NOON_IN_PARIS),
        (run_at, "1000-01-01", datetime(1000, 1, 1, tzinfo=UTC)),
        (run_at, "8999-12-31T23:59:59.9", datetime(8999, 12, 31, 23, 59, 59, 900_000, tzinfo=UTC)),
        (read_priority, " -3", -3),
        (read_priority, "99", 99),  # the range is checked where it is used
        (rate, "0.5", 0.5),
        *((read_id, str(number), number) for number in (0, MAX_ID)),
    ],
)
def test_what_may_be_stored_is_returned(check: Any, value: object, stored: object) -> None:
    assert check(value) == stored


@pytest.mark.parametrize("text", ["2026-03-29T10:00", "2026-03-29T12:00+02:00"])
def test_a_time_is_in_utc_unless_it_says_otherwise_wherever_the_host_is(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    try:
        moment = run_at(text)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (moment, moment.tzinfo) == (NOON_IN_PARIS, UTC)


NO_DELAY = "delay must be a timedelta or a number of seconds, from 0 to 100 years, got"
NO_POLL = "poll must be a timedelta or a number of seconds, from 1 ms to 1 d, got"
NO_SIGNAL = "signal must be 1 to 200 printable characters, got"
NUL = "holds a NUL character, which PostgreSQL cannot store: leave it out"
HALF = "is not valid Unicode: it holds half of a surrogate pair; correct the text"
NO_NUMBER = "args holds NaN or a number beyond 1.8e308, which JSON does not have: give a finite number"
TOO_DEEP = "args is nested more than 100 levels deep: store the data and pass its key"
NO_TIME = "is not a time: write one such as 2026-03-29T14:30, in UTC"
OUT_OF_RANGE = "is out of range: write a time from the year 1000 to 8999"


@pytest.mark.parametrize(
    ("check", "value", "said"),
    [
        *((delay, value, f"{NO_DELAY} {value!r}") for value in (True, "5", None, -0.001, math.nan, timedelta(-1))),
        (delay, CENTURY + 1, f"{NO_DELAY} 3153600001.0"),
        (delay, "x" * 99, f"{NO_DELAY} '{'x' * 59}"),
        *((poll, seconds, f"{NO_POLL} {seconds}") for seconds in (0, DAY + 1)),
        *(
            (total, value, f"total must be an integer from -10 to 2,000, got {value!r}")
            for value in (-11, 2001, True, 2.0, "3")
        ),
        *((signal, value, f"{NO_SIGNAL} {value!r}") for value in ("", "a\nb", 5, None)),
        (signal, "x" * 201, f"{NO_SIGNAL} '{'x' * 59}"),
        *(
            (queue, name, f"queue must be 1 to 200 printable characters without '=' and ',', got {name!r}")
            for name in ("a,b", "a=1")
        ),
        (reason, "x" * 100 + "\x00", f"reason='{'x' * 59} {NUL}"),
        (args, "a\x00", rf"args='a\x00' {NUL}"),
        (args, ["a", ["\x00"]], rf"args='\x00' {NUL}"),
        (args, {"a": 1, "\x00": 2}, rf"args='\x00' {NUL}"),
        (args, [{"a": {"b": "\ud800"}}, 1], rf"args='\ud800' {HALF}"),
        (args, [1, {"a": -math.inf}], NO_NUMBER),
        (args, nested(100), TOO_DEEP),
        (run_at, "soon", f"run_at='soon' {NO_TIME}"),
        (run_at, "x" * 99, f"run_at='{'x' * 39} {NO_TIME}"),
        (run_at, "0001-01-01T00:00+23:00", f"run_at='0001-01-01T00:00+23:00' {NO_TIME}"),
        (run_at, "0999-12-31T23:59", f"run_at=0999-12-31T23:59:00+00:00 {OUT_OF_RANGE}"),
        (run_at, "9000-01-01", f"run_at=9000-01-01T00:00:00+00:00 {OUT_OF_RANGE}"),
        (read_priority, "high", "priority must be an integer from -10 to 10 (lower runs first), got 'high'"),
        (rate, "fast", "rate must be a number, got 'fast'"),
        *((read_id, text, f"{text!r} is not an id") for text in ("", "x", "-1", " 1", "²", "٣", str(MAX_ID + 1))),
        (read_id, "1" * 5000, f"'{'1' * 39} is not an id"),
    ],
)
def test_what_may_not_is_refused_with_the_reason(check: Any, value: object, said: str) -> None:
    with pytest.raises(ERRORS.get(check, ArgumentsError)) as caught:
        check(value)
    assert str(caught.value) == said
