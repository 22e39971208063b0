"""The output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from functools import wraps
from shlex import quote
from textwrap import wrap
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sqla_jobs.cli.naming import HOST, NAMED, output_on_stderr
from sqla_jobs.database.shard_name import SHARD, with_shard
from sqla_jobs.models.types import PARKED
from sqla_jobs.monitoring.finding import Finding, Verdict
from sqla_jobs.rules.redaction import check_depth
from sqla_jobs.rules.wording import Count, duration

_WIDE = 10_000

_STDOUT = "sqla_jobs.stdout"
"""The key in `Context.meta` for the stream that was standard output before it was redirected."""


def as_json(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command an `as_json` option. With that option, the application's own output goes to standard error."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    @wraps(command)
    def run(*args: Any, as_json: bool, **options: Any) -> None:
        click.get_current_context().meta[_STDOUT] = sys.stdout
        with output_on_stderr() if as_json else nullcontext():
            command(*args, as_json=as_json, **options)

    return run


def print_json(data: Any) -> None:
    """Print one JSON document, with times in ISO 8601 and durations in seconds."""
    document = json.dumps(data, default=_plain, indent=2, ensure_ascii=False)
    click.echo(document, file=click.get_current_context().meta[_STDOUT])


def plain_json(text: str | None) -> Any:
    """Parse JSON; return the text itself if it is invalid or nested too deeply to be printed."""
    try:
        return None if text is None else check_depth(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _fields(value)
        case _:
            return str(value)


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields by name. Each count gets a second field that says whether the count is a minimum."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    counts = {name: one for name, one in found.items() if isinstance(one, Count)}
    numbers = {name: one.number for name, one in counts.items()}
    return found | numbers | {f"{name}_is_least": one.is_least for name, one in counts.items()}


def print_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, with numbers right-aligned. Nothing is wrapped if standard output is not a terminal."""
    lines = [list(row) for row in rows]
    is_seen = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for place, name in enumerate(heading):
        is_number = bool(lines) and all(isinstance(line[place], int | float | Count) for line in lines)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold", no_wrap=not is_seen)
    for line in lines:
        table.add_row(*(Text(shown(value)) for value in line))
    console().print(table)


def print_wrapped(text: str, indent: str = "", *, stderr: bool = False) -> None:
    """Print text, wrapped between words at the terminal's width. Continued lines are indented by `indent`."""
    width = console(stderr=stderr).width
    lines = wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    click.echo("\n".join(lines), err=stderr)


def print_problems(problems: Iterable[Finding], *, stderr: bool = False) -> None:
    """Print each problem, the worst first, with its remedy under it."""
    for one in sorted(problems, key=lambda one: one.verdict is not Verdict.error):
        click.echo(err=stderr)
        print_wrapped(f"{one.verdict}: {shown(one)}", "  ", stderr=stderr)
        print_wrapped(f"    {remedy(one.remedy)}", "    ", stderr=stderr)


def short(process_id: uuid.UUID | None) -> str:
    """Return the beginning of a process's id, enough to distinguish it from the others in the table."""
    return str(process_id or "")[:8]


def remedy(text: str) -> str:
    """Return a remedy with commands for the program that prints it, such as `flask jobs worker`, and its database."""
    text = with_shard(text, SHARD.get())
    context = click.get_current_context(silent=True)
    if context is not None and HOST in context.meta:
        program = context.find_root().info_name or "flask"
        text = text.replace("python -m sqla_jobs.worker MODULE:ATTR", f"{program} jobs worker")
        text = text.replace("python -m sqla_jobs.clock MODULE:ATTR", f"{program} jobs worker --clock-only")
        text = text.replace("sqla-jobs ", f"{program} jobs ")
    elif context is not None:
        text = text.replace("MODULE:ATTR", quote(context.meta.get(NAMED, "MODULE:ATTR")))
    return shown(text)


def console(*, stderr: bool = False) -> Console:
    """Return a console. If the stream is not a terminal, the console is wide enough never to wrap."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False, markup=False, emoji=False)


def shown(value: object) -> str:
    """Return a value as human-readable text. Control characters are escaped."""
    match value:
        case None | "":
            return "-"
        case datetime() if value == PARKED:
            return "parked"
        case datetime():
            return f"{value.astimezone():%Y-%m-%d %H:%M:%S%z}"
        case timedelta():
            return duration(value.total_seconds())
        case float():
            return f"{value:.1f}"
        case _:
            return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in str(value))


def till(end: datetime | timedelta | None) -> str:
    """Return ` for 5 min` or ` until MOMENT`, to end a sentence; an empty string for None."""
    match end:
        case None:
            return ""
        case timedelta():
            return f" for {duration(end.total_seconds())}"
        case datetime():
            return f" until {shown(end)}"
