"""The types of options that take a duration, a time, or JSON."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import click

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.rules.value_checks import read_duration, read_time


def duration(text: str) -> timedelta:
    """Parse a duration: `90s`, `15m`, `12h`, `7d` or `2w`."""
    try:
        return read_duration("time", text.strip())
    except ArgumentsError as error:
        raise click.BadParameter(str(error)) from None


def moment(text: str) -> datetime | timedelta:
    """Parse a duration, or a date and time such as 2026-03-29T14:30, in UTC if it has no offset."""
    try:
        return read_time("time", text.strip())
    except ArgumentsError as error:
        raise click.BadParameter(str(error)) from None


def retention(text: str) -> dict[str, timedelta | None]:
    """Parse retention times: `succeeded=7d,failed=never,audit=90d`."""
    found: dict[str, timedelta | None] = {}
    for item in filter(None, text.split(",")):
        state, _, length = item.strip().partition("=")
        if not length:
            raise click.BadParameter(f"{item!r} is not STATE=TIME, such as succeeded=7d or failed=never")
        found[state] = None if length == "never" else duration(length)
    return found


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(f'{text!r:.60} is no JSON object: write such as \'{{"region": "eu"}}\'')
    return found
