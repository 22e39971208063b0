"""The texts of messages: times, durations, shares, numbers with nouns, and names that are similar."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from sqla_jobs.rules.wording import (
    NOTHING,
    duration,
    moment,
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
