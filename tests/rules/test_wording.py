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
        (0.9995, "1 s"),
        (4.21, "4.2 s"),
        (9.95, "10 s"),
        (61, "1 min 1 s"),
        (11530, "3 h 12 min"),
        (10 * 86400 + 3599, "10 d"),
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
        (12345, "12,345 jobs are"),
        (Count(10_000, is_least=True), "at least 10,000 jobs are"),
    ],
)
def test_a_number_is_told_with_its_noun_and_verb(count: int, told: str) -> None:
    assert they_are(count, "job") == told
    assert plural(count, "job") == told.rpartition(" ")[0]


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

    assert did_you_mean(given, ["report"]) == ""
