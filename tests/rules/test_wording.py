"""The texts of messages: times, durations, shares, numbers with nouns, and names that are similar."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from sqla_jobs.rules.wording import (
    NOTHING,
    Count,
    did_you_mean,
    duration,
    moment,
    near_names,
    offset,
    percent,
    plural,
    they_are,
)


@pytest.mark.parametrize(("zone", "hour"), [(UTC, "12"), (timezone(timedelta(hours=2)), "10")])
def test_a_time_is_told_in_utc_wherever_the_machine_is(
    zone: timezone, hour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    told = moment(datetime(2026, 3, 1, 12, 30, 5, tzinfo=zone))
    monkeypatch.undo()
    time.tzset()
    assert told == f"2026-03-01 {hour}:30:05 UTC"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, NOTHING),
        (0, "0 ms"),
        (0.001234, "1.2 ms"),
        (0.0010495, "1 ms"),
        (0.0994, "99 ms"),
        (0.0995, "100 ms"),
        (0.1234, "123 ms"),
        (0.9994, "999 ms"),
        (0.9995, "1 s"),
        (1, "1 s"),
        (4.21, "4.2 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3659, "1 h"),
        (11530, "3 h 12 min"),
        (86399.6, "1 d"),
        (90_061, "1 d 1 h"),
        (10 * 86400 + 3599, "10 d"),
        (-0.5, "-500 ms"),
        (-90, "-1 min 30 s"),
    ],
)
def test_a_duration_is_told_in_at_most_two_units(seconds: float | None, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0, "0 %"),
        (0.0001, "< 1 %"),
        (0.01, "1 %"),
        (0.474, "47 %"),
        (0.99, "99 %"),
        (0.9999, "> 99 %"),
        (1, "100 %"),
    ],
)
def test_only_nothing_and_all_are_told_as_0_and_100_percent(share: float, told: str) -> None:
    assert percent(share) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, NOTHING),
        (0, "0"),
        (-0.0049, "0"),
        (0.0051, "+10 ms"),
        (-0.0051, "-10 ms"),
        (0.123, "+120 ms"),
        (75, "+1 min 15 s"),
        (-3, "-3 s"),
    ],
)
def test_how_far_a_clock_is_ahead_or_behind(seconds: float | None, told: str) -> None:
    assert offset(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 jobs are"),
        (1, "1 job is"),
        (2, "2 jobs are"),
        (12345, "12,345 jobs are"),
        (Count(1), "1 job is"),
        (Count(12345), "12,345 jobs are"),
        (Count(10_000, is_least=True), "at least 10,000 jobs are"),
    ],
)
def test_a_number_is_told_with_its_noun_and_verb(count: int, told: str) -> None:
    assert they_are(count, "job") == told
    assert plural(count, "job") == told.rpartition(" ")[0]


@pytest.mark.parametrize(
    ("count", "said", "is_least"),
    [(Count(12345), "12345", False), (Count(10_001, is_least=True), "10001+", True)],
)
def test_a_count_says_whether_it_is_a_minimum(count: Count, said: str, is_least: bool) -> None:
    assert (str(count), count.is_least) == (said, is_least)


@pytest.mark.parametrize(
    ("given", "known", "near", "said"),
    [
        ("mail", ["mailers", "mails", "mailer", "mail"], ["mail", "mails", "mailer"], "'mail' or 'mails' or 'mailer'"),
        ("mial", {"mail": 1, "report": 2}, ["mail"], "'mail'"),
        ("a" * 1000, ["a" * 200], ["a" * 200], f"'{'a' * 200}'"),
    ],
)
def test_the_most_similar_names_are_offered(given: str, known: list[str], near: list[str], said: str) -> None:
    assert near_names(given, known) == near
    assert did_you_mean(given, known) == f"; did you mean {said}?"


def test_no_name_is_offered_where_none_is_similar() -> None:
    assert did_you_mean("mail", ["report"]) == ""
