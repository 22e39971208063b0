"""Numbers, times and durations for people. Pure functions."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

from sqla_jobs.models.types import PARKED
from sqla_jobs.rules.wording import UNITS

_LONG = 100_000
"""The maximum length of arguments, results and other texts on a page."""


def number(value: float) -> str:
    """Format a number with separators: 1234567 as `1,234,567`."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Format a number for an axis: 1,200 as `1.2k`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def ago(moment: datetime, now: datetime) -> str:
    """Return the distance of `moment` from `now` in one unit, such as `5 min ago` or `in 5 min`."""
    seconds = (now - moment).total_seconds()
    distance = abs(seconds)
    if distance < 1:
        return "now"
    for size, unit in UNITS:
        if distance >= size:
            said = f"{int(distance // size)} {unit}"
            return f"{said} ago" if seconds > 0 else f"in {said}"
    return "now"


def exact(moment: datetime) -> str:
    """Return a time in UTC, to the millisecond."""
    if moment == PARKED:
        return "parked"
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def sentence(text: str) -> Markup:
    """Render a sentence: text between backticks is code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # it is escaped


def parted(name: str) -> Markup:
    """Render a task's name so that it can wrap between its parts."""
    return Markup(re.sub(r"([._])(?=.)", r"\1<wbr>", str(escape(name))))  # noqa: S704  # it is escaped


def cut(text: str) -> str:
    """Return the beginning of a very long text, and how much there is more."""
    return text if len(text) <= _LONG else f"{text[:_LONG]}\n… {len(text) - _LONG:,} more characters"
