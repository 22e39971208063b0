"""Cron expressions and intervals in a time zone: pure functions, built on croniter.

An expression has five fields (minute, hour, day, month, weekday), or six with seconds first. `every(minutes=5)` and
`@every 300` are intervals counted from 1970-01-01 UTC, so that they never drift.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from croniter.croniter import CroniterError

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.rules.cron_fields import FIELDS

__all__ = ["Cron", "every"]

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_LENGTH = 200
_EVERY = re.compile(r"@every +(\d{1,9}(?:\.\d{1,6})?)", re.ASCII)
_SECOND = timedelta(seconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def every(*, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> str:
    """Return the text of an interval for `schedule`, such as "@every 300".

    - `days`, `hours`, `minutes`, `seconds`: their sum is the interval, from 1 second to ten years.

    Raises `ConfigurationError` for a shorter or longer interval.
    """
    total = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    text = f"@every {total:f}".rstrip("0").rstrip(".")
    return Cron.parse(text).text


@dataclass(frozen=True)
class Cron:
    """A rule for the times at which a schedule is due.

    On each day that matches, a rule with fixed hours fires once at each time of day that it names. If daylight saving
    time skips such a time, the rule fires at the first instant after the gap. If the time occurs twice, the rule fires
    only the first time. A rule whose hour is a wildcard (`*`, `*/2`) follows the hours as they pass: it never fires in
    the gap, and fires in both passes of a repeated hour.

    If both day fields (day and weekday) are restricted, a day matches if either field matches. A field that begins with
    `*` (even `*/2`) is not restricted. If either field is not restricted, a day must match both. These are the rules of
    crontab(5).
    """

    text: str
    """The rule as given, with single spaces."""
    timezone: str = "UTC"
    """The IANA time zone in which the rule is interpreted."""

    @classmethod
    def parse(cls, text: str, timezone: str = "UTC") -> Cron:
        """Return the rule after checking it.

        - `text`: five fields (minute hour day month weekday), six with seconds first, a name such as `@daily`, or
          `@every SECONDS`; 200 characters at most.
        - `timezone`: an IANA name such as "Europe/Paris".

        Raises a `ConfigurationError` that names the invalid field.
        """
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise ConfigurationError(f"cron must be text such as '30 2 * * *', got {text!r:.60}")
        return _parsed(" ".join(text.split()) if len(text) <= _LENGTH else text, timezone)

    def next_after(self, moment: datetime) -> datetime:
        """Return the first time after `moment` at which the rule is due, in UTC.

        - `moment`: a datetime with a time zone.

        Raises `ConfigurationError` for a datetime without a time zone.
        """
        if moment.utcoffset() is None:
            raise ConfigurationError(f"{moment!r} has no time zone: give an aware datetime")
        moment = moment.astimezone(UTC)
        if self._interval is not None:
            return _EPOCH + ((moment - _EPOCH) // self._interval + 1) * self._interval
        moment = moment.replace(microsecond=0)
        return self._next_hour_by_hour(moment) if self._is_wildcard else self._next_day_by_day(moment)

    @property
    def description(self) -> str:
        """Return the rule in plain English."""
        if self._interval is not None:
            return f"Every {self._interval}"
        from cron_descriptor import Options, get_description  # pyright: ignore[reportMissingTypeStubs]

        try:
            said = get_description(self._expression, Options(locale_code="en_US"))  # the default is the host's language
        except Exception:  # noqa: BLE001 - it fails, with various errors, for some rules that are valid
            said = self._expression
        if not self._is_either_enough:
            said = said.replace(", or on ", ", only on ")
        return said if self.timezone == "UTC" else f"{said}, {self.timezone} time"

    @cached_property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @cached_property
    def _interval(self) -> timedelta | None:
        found = _EVERY.fullmatch(self.text)
        return timedelta(seconds=float(found[1])) if found else None

    @cached_property
    def _expression(self) -> str:
        return _ALIASES.get(self.text.lower(), self.text)

    @cached_property
    def _fields(self) -> list[str]:
        """Return the fields as written, with seconds first."""
        fields = self._expression.split()
        return fields if len(fields) == len(FIELDS) else ["0", *fields]

    @cached_property
    def _expanded(self) -> list[str]:
        """Return the fields as text, with names and ranges replaced by numbers, such as `0,15,30,45`."""
        return [field.expand(text) for field, text in zip(FIELDS, self._fields, strict=True)]

    @cached_property
    def _is_wildcard(self) -> bool:
        return self._fields[2].startswith("*") or self._expanded[2].count(",") == 23

    @cached_property
    def _is_either_enough(self) -> bool:
        return not any(self._fields[place].startswith("*") for place in (3, 5))

    @cached_property
    def _calendar(self) -> croniter[Any]:
        return croniter(" ".join(self._expanded), second_at_beginning=True, day_or=self._is_either_enough)

    def check(self) -> None:
        """Raise `ConfigurationError` if the rule or its time zone is invalid."""
        try:
            self._zone  # noqa: B018 - raises an error if there is no such zone
        except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
            raise ConfigurationError(
                f"timezone={self.timezone!r:.100} is not an IANA time zone such as 'Europe/Paris'"
            ) from None
        if len(self.text) > _LENGTH:
            raise ConfigurationError(
                f"cron {self.text!r:.50} has {len(self.text):,} characters; at most {_LENGTH} are allowed"
            )
        if self._interval is not None:
            if not _SECOND <= self._interval <= timedelta(days=3650):
                raise ConfigurationError(f"cron {self.text!r}: the interval must be from 1 second to ten years")
            return
        if self._expression.startswith("@"):
            raise ConfigurationError(f"unknown cron {self.text!r}; valid names: {', '.join(_ALIASES)}, @every SECONDS")
        self._check_fields(self._expression.split())
        try:
            self._after(datetime(2000, 1, 1))  # noqa: DTZ001 - local time
        except CroniterError:
            raise ConfigurationError(f"cron {self.text!r} never fires: there is no such day") from None

    def _check_fields(self, fields: list[str]) -> None:
        if len(fields) not in (5, 6):
            raise ConfigurationError(
                f"cron {self.text!r} has {len(fields)} fields: give five (minute hour day month weekday), "
                "or six with seconds first"
            )
        for field, value in zip(FIELDS[-len(fields) :], fields, strict=True):
            try:
                field.expand(value)
            except ValueError as error:
                raise ConfigurationError(
                    f"cron {self.text!r}: {value!r} is not a valid {field.name}: {error}"
                ) from None
        day, weekday = fields[-3], fields[-1]
        if re.search("[#Ll]", weekday) and day not in ("*", "?"):
            raise ConfigurationError(f"cron {self.text!r}: {weekday!r} needs * as its day of month")

    def _after(self, local: datetime) -> datetime:
        """Return the first match after `local`, a time without a time zone."""
        found: datetime = copy.copy(self._calendar).get_next(datetime, start_time=local)
        return found

    def _next_day_by_day(self, moment: datetime) -> datetime:
        here = moment.astimezone(self._zone)
        local = here.replace(tzinfo=None)
        if here.fold:  # a time that occurs twice is due only the first time
            change = self._change_between(moment - self._shift_at(local), moment)
            local = max(local, self._local(change) + self._shift_at(local) - _SECOND)
        while True:
            local = self._after(local)
            due = self._instant(local, 0)
            if self._local(due) != local:
                due = self._change_between(self._instant(local, 1), due)
            if due > moment:
                return due

    def _next_hour_by_hour(self, moment: datetime) -> datetime:
        here = moment.astimezone(self._zone)
        local = start = here.replace(tzinfo=None)
        while True:
            local = self._after(local)
            passes = [self._instant(local, fold) for fold in (0, 1)]
            if due := [one for one in passes if one > moment and self._local(one) == local]:
                break
        shift = self._shift_at(start)
        if here.fold or shift <= timedelta(0) or self._instant(start, 0) == self._instant(start, 1):
            return min(due)
        second_pass = self._local(self._change_between(moment, moment + shift))
        again = self._after(second_pass - _SECOND)
        return min(*due, self._instant(again, 1))

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def _instant(self, local: datetime, fold: int) -> datetime:
        return local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC)

    def _shift_at(self, local: datetime) -> timedelta:
        """Return how far the clock is set back at a local time that occurs twice; 0 or less at other times."""
        return self._instant(local, 1) - self._instant(local, 0)

    def _change_between(self, before: datetime, after: datetime) -> datetime:
        """Return the second at which the zone's offset changes, in (before, after]."""
        offset = before.astimezone(self._zone).utcoffset()
        while after - before > _SECOND:
            middle = before + (after - before) // 2
            middle = middle.replace(microsecond=0)
            if middle.astimezone(self._zone).utcoffset() == offset:
                before = middle
            else:
                after = middle
        return after


@lru_cache(4096)
def _parsed(text: str, timezone: str) -> Cron:
    cron = Cron(text, timezone)
    cron.check()
    return cron
