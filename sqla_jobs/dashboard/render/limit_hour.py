"""The last hour of a limit, as bars in a picture of 1000 by 100 and in words. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqla_jobs.dashboard.data.limit_use import HOUR, LimitUses
from sqla_jobs.dashboard.render.chart import HEIGHT, WIDTH, Bar
from sqla_jobs.monitoring.limits import EACH
from sqla_jobs.runtime.figures import LimitStatus


@dataclass(frozen=True)
class LimitHour:
    """The picture, and its content in words. There are no bars if nothing has run."""

    bars: Sequence[Bar]
    words: str


def limit_hour(limit: LimitStatus, uses: LimitUses) -> LimitHour:
    """Return a limit's last hour. A full bar is the maximum, or the highest value if each key has its own maximum."""
    values = uses.of[limit.gate].buckets
    if not any(values):
        return LimitHour([], "")
    top = max(*values, _most(limit))
    slot = WIDTH / HOUR.buckets
    is_rate = limit.kind == "rate"
    about = "about " if uses.sampled else ""
    unit = " started" if is_rate else " at once"
    bars = [
        Bar(
            round(place * slot + slot * 0.12, 2),
            round(slot * 0.76, 2),
            round(HEIGHT * value / top, 2),
            0,
            f"{uses.start + HOUR.width * place:%H:%M}: {about}{_number(value)}{unit}",
        )
        for place, value in enumerate(values)
    ]
    minutes = f"{HOUR.width.total_seconds() / 60:g} min"
    whole = f"{_number(sum(values))} started" if is_rate else f"{_number(sum(values) / len(values))} at once"
    return LimitHour(bars, f"{about}{whole}, at most {_number(max(values))}{f' in {minutes}' if is_rate else ''}")


def _most(limit: LimitStatus) -> float:
    """Return the largest value that a bar can have; 0 if each key has its own maximum."""
    if limit.key == EACH or not limit.most:
        return 0.0
    return limit.most if limit.per is None else limit.most * max(1.0, HOUR.width.total_seconds() / limit.per)


def _number(value: float) -> str:
    if 0 < value < 0.05:
        return "< 0.1"
    return f"{value:,.1f}".removesuffix(".0")
