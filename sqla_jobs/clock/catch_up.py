"""Pure rules that decide which ticks of a schedule are due."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqla_jobs.cron import Cron
from sqla_jobs.models.types import CatchUp

MOST = 100
"""With `catch_up="all"`, at most this many due ticks fire: the newest ones."""
COUNTED = 1_000
"""The maximum number of missed ticks to count. Counting one takes about 30 µs, while the schedules are locked."""
_LATE = timedelta(seconds=30)
"""With `catch_up="skip"`, a tick that is late by more than this is missed."""
_WINDOWS = [timedelta(seconds=1) * 60**power for power in range(1, 6)]


@dataclass(frozen=True, slots=True)
class Missed:
    """Consecutive ticks that were not fired. `count` is None if there are more than `COUNTED`."""

    first: datetime
    last: datetime
    count: int | None


@dataclass(frozen=True, slots=True)
class Due:
    """The ticks of a schedule: the ticks to fire (oldest first), the missed ticks, and the next tick."""

    fired: list[datetime]
    missed: Missed | None
    upcoming: datetime


def ticks_due(cron: Cron, first: datetime, now: datetime, catch_up: CatchUp) -> Due:
    """Decide which ticks from `first` to `now` fire and which were missed. `first` is a due tick."""
    most = MOST if catch_up == CatchUp.all else 1
    upcoming = cron.next_after(first)
    newest = [first]
    if upcoming <= now:
        newest, upcoming = _newest(cron, upcoming, now, most + 1), cron.next_after(now)
        if len(newest) <= most:
            newest.insert(0, first)
    fired = newest[-most:]
    if catch_up == CatchUp.skip:
        fired = [tick for tick in fired if now - tick <= _LATE]
    left = newest[: len(newest) - len(fired)]
    return Due(fired, _missed(cron, first, left[-1]) if left else None, upcoming)


def _missed(cron: Cron, first: datetime, last: datetime) -> Missed:
    count, tick = 1, first
    while tick < last and count <= COUNTED:
        tick = cron.next_after(tick)
        count += 1
    return Missed(first, last, count if tick == last else None)


def _newest(cron: Cron, first: datetime, now: datetime, count: int) -> list[datetime]:
    """Return the last `count` ticks in [first, now].

    Search longer and longer windows before `now`, since there may be many ticks.
    """
    before_first = first - timedelta(microseconds=1)
    found: deque[datetime] = deque(maxlen=count)
    for window in [*_WINDOWS, now - before_first]:
        found.clear()
        tick = cron.next_after(max(before_first, now - window))
        while tick <= now:
            found.append(tick)
            tick = cron.next_after(tick)
        if len(found) == count or now - window <= before_first:
            break
    return list(found)
