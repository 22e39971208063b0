"""Callbacks that parse the durations and times given as options."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.rules.value_checks import read_duration, read_time


def duration(context: click.Context, option: click.Parameter, text: str) -> timedelta:
    """Parse a duration: `90s`, `15m`, `12h`, `7d` or `2w`."""
    try:
        return read_duration(option.opts[0], text.strip())
    except ArgumentsError as error:
        raise click.BadParameter(str(error), context, option) from None


def since(context: click.Context, option: click.Parameter, text: str | None) -> datetime | timedelta | None:
    """Parse a duration, or a date and time such as 2026-03-29T14:30, in UTC if it has no offset."""
    try:
        return None if text is None else read_time(option.opts[0], text.strip())
    except ArgumentsError as error:
        raise click.BadParameter(str(error), context, option) from None


ahead = since
"""Parse a duration from now, or a date and time, for an option about the future."""


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
