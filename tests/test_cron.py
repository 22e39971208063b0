"""When schedules are due: worked out by hand from the rules of IANA's time zones, and as properties."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_jobs.cron import Cron, every
from sqla_jobs.errors import ConfigurationError


def ticks(text: str, zone: str, after: str, until: str) -> list[str]:
    """The ticks between two local times, as local time with its offset."""
    cron, here = Cron.parse(text, zone), ZoneInfo(zone)
    end = datetime.fromisoformat(until).replace(tzinfo=here).astimezone(UTC)
    moment = datetime.fromisoformat(after).replace(tzinfo=here)
    found: list[str] = []
    while (moment := cron.next_after(moment)) <= end:
        found.append(moment.astimezone(here).strftime("%d %H:%M %z"))
    return found


NEW_YORK, LORD_HOWE = "America/New_York", "Australia/Lord_Howe"


@pytest.mark.parametrize(
    ("text", "zone", "after", "until", "expected"),
    [
        # New York, 8 March 2026: 02:00 EST is 03:00 EDT
        ("30 2 * * *", NEW_YORK, "2026-03-07", "2026-03-09", ["07 02:30 -0500", "08 03:00 -0400"]),
        ("*/15 2 * * *", NEW_YORK, "2026-03-08", "2026-03-08 23:00", ["08 03:00 -0400"]),
        ("30 * * * *", NEW_YORK, "2026-03-08 01:00", "2026-03-08 04:00", ["08 01:30 -0500", "08 03:30 -0400"]),
        ("0 3 * * *", NEW_YORK, "2026-03-08", "2026-03-08 23:00", ["08 03:00 -0400"]),
        # 1 November 2026: 02:00 EDT is 01:00 EST
        ("30 1 * * *", NEW_YORK, "2026-10-31 12:00", "2026-11-03", ["01 01:30 -0400", "02 01:30 -0500"]),
        ("30 */1 * * *", NEW_YORK, "2026-11-01 01:00", "2026-11-01 02:00", ["01 01:30 -0400", "01 01:30 -0500"]),
        # Paris, 25 October 2026: 03:00 CEST is 02:00 CET
        ("0 2-3 * * *", "Europe/Paris", "2026-10-25", "2026-10-25 12:00", ["25 02:00 +0200", "25 03:00 +0100"]),
        ("59 2 * * sun", "Europe/Paris", "2026-10-24", "2026-10-26", ["25 02:59 +0200"]),
        # Lord Howe, 5 April 2026: 02:00 +11 is 01:30 +10:30; 4 October 2026: 02:00 +10:30 is 02:30 +11
        ("45 1 * * *", LORD_HOWE, "2026-04-04 12:00", "2026-04-06 12:00", ["05 01:45 +1100", "06 01:45 +1030"]),
        (
            "*/30 * * * *",
            LORD_HOWE,
            "2026-04-05 01:10",
            "2026-04-05 02:00",
            ["05 01:30 +1100", "05 01:30 +1030", "05 02:00 +1030"],
        ),
        ("15 2 * * *", LORD_HOWE, "2026-10-03 12:00", "2026-10-05 12:00", ["04 02:30 +1100", "05 02:15 +1100"]),
        ("15 * * * *", LORD_HOWE, "2026-10-04 01:00", "2026-10-04 04:00", ["04 01:15 +1030", "04 03:15 +1100"]),
        # Apia had no 30 December 2011
        ("30 0 * * *", "Pacific/Apia", "2011-12-29 12:00", "2011-12-31 12:00", ["31 00:00 +1400", "31 00:30 +1400"]),
    ],
)
def test_ticks_worked_out_by_hand(text: str, zone: str, after: str, until: str, expected: list[str]) -> None:
    assert ticks(text, zone, after, until) == expected


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("0 0 9 * * *", "2026-11-25T08:59:59.999999Z", "2026-11-25T09:00:00Z"),
        ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 13 * fri", "2026-11-25T00:00:00Z", "2026-11-27T00:00:00Z"),
        ("0 0 L * *", "2026-11-25T00:00:00Z", "2026-11-30T00:00:00Z"),
        ("0 0 * * MON#1", "2026-11-25T00:00:00Z", "2026-12-07T00:00:00Z"),
        ("0 0 * * fri-mon/3", "2026-11-28T00:00:00Z", "2026-11-30T00:00:00Z"),
        ("0 0 1,L * *", "2026-11-25T00:00:00Z", "2026-11-30T00:00:00Z"),
        ("0 0 * * L5", "2026-11-01T00:00:00Z", "2026-11-27T00:00:00Z"),
        ("0 0 */2 * MON", "2026-11-25T00:00:00Z", "2026-12-07T00:00:00Z"),
        ("@Weekly", "2026-11-25T08:59:00Z", "2026-11-29T00:00:00Z"),
        ("@every 90", "2026-11-25T00:00:00Z", "2026-11-25T00:01:30Z"),
    ],
)
def test_next_after(text: str, after: str, expected: str) -> None:
    assert Cron.parse(text).next_after(datetime.fromisoformat(after)) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("61 * * * *", "'61'"),
        ("* * 0 * *", "'* * 0 * *'"),
        ("* * * * 8", "'8'"),
        ("60 * * * * *", "'60'"),
        ("R(1-5) * * * *", "minute"),
        ("* * * *", "4 fields"),
        ("@reboot", "'@reboot'"),
        ("@every 0.5", "1 second"),
        ("0 0 31 4,6,9,11 *", "never"),
        ("0 0 1 * MON#1", "day of month"),
        ("1" * 5_000_000, "200"),
        ("* " * 99, "fields"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Cron.parse(text)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "zone"),
    [("* * * * *", zone) for zone in ("Mars/Olympus", "", "../etc/passwd", "x" * 5000, None)]
    + [(None, "UTC"), (b"* * * * *", "UTC")],
)
def test_what_is_no_rule_or_no_time_zone_is_refused(text: Any, zone: Any) -> None:
    with pytest.raises(ConfigurationError):
        Cron.parse(text, zone)


def test_a_naive_moment_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="aware"):
        Cron.parse("* * * * *").next_after(datetime(2026, 1, 1))  # noqa: DTZ001


def test_intervals_do_not_drift_whenever_one_looks() -> None:
    cron = Cron.parse(every(minutes=7), "America/New_York")
    first = cron.next_after(datetime(2026, 3, 8, 6, 59, 59, 999_999, tzinfo=UTC))
    found = [first]
    for late in range(100):
        found.append(cron.next_after(found[-1] + timedelta(seconds=late)))
    assert {b - a for a, b in pairwise(found)} == {timedelta(minutes=7)}
    assert every(hours=1, seconds=0.5) == "@every 3600.5"
    for wrong in (0, -1, 0.1, 1e12):
        with pytest.raises(ConfigurationError):
            every(seconds=wrong)


@pytest.mark.parametrize(
    ("text", "zone", "said"),
    [
        ("30 2 * * MON-FRI", "Europe/Paris", "At 02:30 AM, Monday through Friday, Europe/Paris time"),
        ("@every 90", "UTC", "Every 0:01:30"),
        ("0 0 1 * MON", "UTC", "At 12:00 AM, on day 1 of the month, or on Monday"),
        ("0 0 */2 * MON", "UTC", "At 12:00 AM, every 2 days, only on Monday"),
        ("0 */2,5 * * *", "UTC", "0 */2,5 * * *"),  # there are no words for it
    ],
)
def test_a_description_for_people_whatever_the_locale_of_the_host(
    monkeypatch: pytest.MonkeyPatch, text: str, zone: str, said: str
) -> None:
    monkeypatch.setattr("locale.getlocale", lambda: ("de_DE", "UTF-8"))
    assert Cron.parse(text, zone).description == said


LOOKS = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(0, 365 * 20, 5)]


def shifts(zone: ZoneInfo) -> Iterator[date]:
    """For each change of the zone's offset in 20 years a day from which it is at most five days away."""
    for before, after in pairwise(LOOKS):
        if before.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            yield before.date() - timedelta(days=1)


@pytest.mark.slow
def test_a_daily_rule_fires_once_on_each_day_around_every_shift_of_20_years_in_every_zone() -> None:
    alike = {
        tuple(look.astimezone(ZoneInfo(name)).utcoffset() for look in LOOKS): name for name in available_timezones()
    }
    assert len(alike) > 50
    for name in alike.values():
        zone = ZoneInfo(name)
        for day in shifts(zone):
            for hour in range(4):
                cron = Cron.parse(f"30 {hour} * * *", name)
                moment = datetime(day.year, day.month, day.day, 12, tzinfo=zone)
                found = [moment]
                for _ in range(8):
                    found.append(cron.next_after(found[-1]).astimezone(zone))
                days = [tick.date() for tick in found]
                assert {b - a for a, b in pairwise(days)} == {timedelta(days=1)}, (name, days)


SINCE = datetime(2000, 1, 1, tzinfo=UTC)
TEXTS = ["30 2 * * *", "*/15 2 * * *", "* * * * *", "0 */2 * * *", "15,45 1-3 * * *", "0 0 1 * *", "*/7 * * * * *"]


@settings(max_examples=150, deadline=None)
@given(
    text=st.sampled_from([*TEXTS, "@every 3600"]),
    zone=st.sampled_from(sorted(available_timezones())),
    moment=st.integers(0, 40 * 365 * 86400).map(
        lambda seconds: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    ),
)
def test_ticks_strictly_increase_and_none_is_passed_over(text: str, zone: str, moment: datetime) -> None:
    cron = Cron.parse(text, zone)
    first = cron.next_after(moment)
    second = cron.next_after(first)
    assert moment < first < second
    between = moment + (first - moment) / 2
    assert cron.next_after(between) == first
    assert cron.next_after(first - timedelta(microseconds=1)) == first


@pytest.mark.parametrize("name", ["America/New_York", "Australia/Lord_Howe", "Antarctica/Troll"])
def test_a_wildcard_hour_fires_each_hour_of_real_time(name: str) -> None:
    """An oracle that asks each minute of UTC what the clock on the wall shows."""
    zone, cron = ZoneInfo(name), Cron.parse("*/10 * * * *", name)
    for day in list(shifts(zone))[:6]:
        start = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
        minutes = [start + timedelta(minutes=n) for n in range(1, 60 * 24 * 7)]
        expected = [minute for minute in minutes if minute.astimezone(zone).minute % 10 == 0]
        found, moment = [], start
        while (moment := cron.next_after(moment)) <= minutes[-1]:
            found.append(moment)
        assert found == expected


NAMES = {"mon": 1, "wed": 3, "sun": 0, "jan": 1, "dec": 12}


def debian_bits(field: str, low: int, high: int) -> set[int]:
    """The numbers of a field, as Debian's cron reads it (entry.c: get_list, get_range)."""

    def number(text: str) -> int:
        return NAMES[text] if text in NAMES else int(text)

    bits: set[int] = set()
    for item in field.split(","):
        whole, _, step = item.partition("/")
        first, dash, last = whole.partition("-")
        from_to = (str(low), str(high)) if first == "*" else (first, last if dash else first)
        bits.update(range(number(from_to[0]), number(from_to[1]) + 1, int(step or 1)))
    return bits


def debian_runs(rule: str, minute: datetime) -> bool:
    """Whether Debian's cron runs the rule in that minute (cron.c: find_jobs)."""
    fields = rule.split()
    bits = [debian_bits(*given) for given in zip(fields, (0, 0, 1, 1, 0), (59, 23, 31, 12, 7), strict=True)]
    if bits[4] & {0, 7}:  # both are Sunday
        bits[4] |= {0, 7}
    dom_star, dow_star = fields[2][0] == "*", fields[4][0] == "*"
    day, weekday = minute.day in bits[2], minute.isoweekday() % 7 in bits[4]
    return (
        minute.minute in bits[0]
        and minute.hour in bits[1]
        and minute.month in bits[3]
        and (day and weekday if dom_star or dow_star else day or weekday)
    )


def random_field(random: Random, low: int, high: int, names: list[str]) -> str:
    def item(*, may_be_star: bool) -> str:
        first, last = sorted(random.choices(range(low, high + 1), k=2))
        forms = [str(first), f"{first}-{last}", f"{first}-{last}/{random.randint(1, 9)}", f"{first}-{first}", *names]
        return random.choice([*forms, f"*/{random.randint(1, high)}"] if may_be_star else forms)

    if random.random() < 0.35:
        return "*"
    return ",".join(item(may_be_star=True) for _ in range(random.choice([1, 1, 1, 2, 3])))


def between(rule: str, begin: datetime, last: datetime) -> list[datetime]:
    cron, found = Cron.parse(rule), list[datetime]()
    moment = begin.replace(tzinfo=UTC) - timedelta(seconds=1)
    while (moment := cron.next_after(moment)).replace(tzinfo=None) <= last:
        found.append(moment.replace(tzinfo=None))
    return found


@pytest.mark.slow
def test_hundreds_of_random_rules_run_when_debian_runs_them() -> None:
    random, begin, compared = Random(17), datetime(2028, 2, 1), 0  # noqa: DTZ001
    minutes = [begin + timedelta(minutes=n) for n in range(60 * 24 * 63)]
    for _ in range(500):
        month = random_field(random, 1, 12, ["jan", "dec"]) if random.random() < 0.2 else "*"
        fields = [random_field(random, 1, 31, []), month, random_field(random, 0, 7, ["mon", "wed", "sun"])]
        rule = " ".join(["7", "4", *fields])
        expected = [at for at in minutes[4 * 60 + 7 :: 24 * 60] if debian_runs(rule, at)]
        if expected:  # otherwise perhaps one that never comes
            assert between(rule, begin, minutes[-1]) == expected, rule
            compared += 1
    assert compared > 350
    for _ in range(30):
        rule = f"{random_field(random, 0, 59, [])} {random_field(random, 0, 23, [])} * * *"
        minutes = minutes[: 60 * 24 * 2]
        assert between(rule, begin, minutes[-1]) == [at for at in minutes if debian_runs(rule, at)], rule


TOKENS = ["*", "?", "L", "W", "#", "-", "/", ",", "0", "1", "2", "5", "7", "12", "31", "59", "07", "MON", "sun", "Jan"]
SOME_FIELD = st.one_of(
    st.sampled_from(["*", "0", "5", "*/2", "1,5", "L", "?", "5#2", "L5", "FRI-MON", "1-5/2", "*/2,5", "07"]),
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=5).map("".join),
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    text=st.one_of(st.lists(SOME_FIELD, min_size=5, max_size=6).map(" ".join), st.text(max_size=30)),
    zone=st.sampled_from(["UTC", "America/New_York"]),
)
def test_no_accepted_rule_fails_later(text: str, zone: str) -> None:
    try:
        cron = Cron.parse(text, zone)
    except ConfigurationError:
        return
    assert cron.description
    first = cron.next_after(SINCE)
    assert SINCE < first < cron.next_after(first)
