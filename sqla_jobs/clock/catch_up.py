"""Which ticks of a schedule are due: pure."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

from sqla_jobs.cron import Cron
from sqla_jobs.models.types import CatchUp

MOST = 100
"""Missed ticks that `catch_up="all"` makes up for; the newest ones."""
_LATE = timedelta(seconds=30)
"""A tick that is later than this was missed."""
_WINDOWS = [timedelta(seconds=1) * 60**power for power in range(1, 6)]


def ticks_due(cron: Cron, first: datetime, now: datetime, catch_up: CatchUp) -> tuple[list[datetime], datetime]:
    """Of the ticks from `first`, which is one and has come, to `now` those to fire, oldest first; and the next one."""
    second = cron.next_after(first)
    if second > now:
        ticks, upcoming = [first], second
    else:
        ticks, upcoming = _newest(cron, second, now, MOST if catch_up == CatchUp.all else 1), cron.next_after(now)
        if catch_up == CatchUp.all and len(ticks) < MOST:
            ticks.insert(0, first)
    if catch_up == CatchUp.skip:
        ticks = [tick for tick in ticks if now - tick <= _LATE]
    return ticks, upcoming


def _newest(cron: Cron, first: datetime, now: datetime, count: int) -> list[datetime]:
    """The last `count` ticks in [first, now]; looked for in ever longer times before `now`, since they may be many."""
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
