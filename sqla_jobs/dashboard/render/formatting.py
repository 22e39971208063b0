"""Numbers, times and durations as people read them: pure."""

from __future__ import annotations

from datetime import UTC, datetime

from sqla_jobs.models.columns import PARKED

NOTHING = "\N{EN DASH}"
"""Where there is no value."""
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: float) -> str:
    """1234567 as 1,234,567."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """For an axis: 1,200 as 1.2k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Two units at most: 3 h 12 min, 4.2 s, 15 ms."""
    if seconds is None:
        return NOTHING
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.0995 or not seconds else f"{1000 * seconds:.2g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    left, parts = round(seconds), list[str]()
    for size, unit in _UNITS:
        if left >= size or parts:
            count, left = divmod(left, size)
            if count:
                parts.append(f"{count} {unit}")
            if len(parts) == 2 or (parts and not count):
                break
    return " ".join(parts)


def ago(moment: datetime, now: datetime) -> str:
    """How far `moment` is from `now`, in one unit."""
    seconds = (now - moment).total_seconds()
    distance = abs(seconds)
    if distance < 1:
        return "now"
    for size, unit in _UNITS:
        if distance >= size:
            said = f"{int(distance // size)} {unit}"
            return f"{said} ago" if seconds > 0 else f"in {said}"
    return "now"


def exact(moment: datetime) -> str:
    """In UTC, to the millisecond."""
    if moment == PARKED:
        return "parked"
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def plural(count: int, noun: str) -> str:
    """1 job, 2 jobs."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
