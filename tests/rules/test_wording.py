"""The texts of messages: times, durations, shares, numbers with nouns, and names that are similar."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from sqla_jobs.rules.wording import (
    moment,
    percent,
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
