"""Callbacks that parse the durations and times given as options."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.rules.value_checks import read_moment

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(context: click.Context, option: click.Parameter, text: str) -> timedelta:
    """Parse a duration: `90s`, `15m`, `12h`, `7d` or `2w`."""
    parts = re.fullmatch(r"(\d{1,5})([smhdw])", text.strip())
    if parts is None:
        raise click.BadParameter(f"{text!r} is not a duration: write 90s, 15m, 12h, 7d or 2w", context, option)
    return timedelta(**{_UNITS[parts[2]]: int(parts[1])})


def since(context: click.Context, option: click.Parameter, text: str | None) -> datetime | timedelta | None:
    """Parse a duration, or a date and time such as 2026-03-29T14:30, in UTC if it has no offset."""
    if text is None or re.fullmatch(r"\d{1,5}[smhdw]", text.strip()):
        return optional(context, option, text)
    try:
        return read_moment(option.opts[0], text)
    except ArgumentsError:
        wanted = "write a duration such as 90s, 15m, 12h, 7d, 2w, or a moment such as 2026-03-29T14:30 (UTC)"
        raise click.BadParameter(f"{text!r:.40} is not a time: {wanted}", context, option) from None


ahead = since
"""Parse a duration from now, or a date and time, for an option about the future."""


def moment(context: click.Context, option: click.Parameter, text: str | None) -> datetime | None:
    """Parse a date and time such as 2026-03-29T14:30, in UTC if it has no offset. Return None without the option."""
    try:
        return None if text is None else read_moment(option.opts[0], text)
    except ArgumentsError as error:
        raise click.BadParameter(str(error), context, option) from None


def optional(context: click.Context, option: click.Parameter, text: str | None) -> timedelta | None:
    """Parse a duration; return None without the option."""
    return None if text is None else duration(context, option, text)


def retention(context: click.Context, option: click.Parameter, text: str) -> dict[str, timedelta | None]:
    """Parse retention times: `succeeded=7d,failed=never,audit=90d`."""
    found: dict[str, timedelta | None] = {}
    for item in filter(None, text.split(",")):
        state, given, length = item.strip().partition("=")
        if not given:
            wanted = "is not STATE=TIME, audit=TIME or ticks=TIME, such as succeeded=7d or failed=never"
            raise click.BadParameter(f"{item!r} {wanted}", context, option)
        found[state] = None if length == "never" else duration(context, option, length)
    return found


def duration_option(name: str, parameter: str, help: str) -> Callable[[Any], Any]:  # noqa: A002
    """Return an option that takes a duration."""
    return click.option(name, parameter, metavar="TIME", callback=optional, help=help)
