"""Which application a command is about, and what goes wrong told in one message."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from sqla_jobs.database.explain import EXPLAINED, explain
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_jobs

P = ParamSpec("P")
_SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*(\(\))?")
HOST = "sqla_jobs.application"
"""Where a program that carries these commands, such as Flask's, leaves MODULE:ATTR in `Context.meta`."""


@contextmanager
def plain_errors() -> Generator[None]:
    """What a person can cause is one message and exit code 1, without a traceback."""
    try:
        yield
    except EXPLAINED as error:
        raise click.ClickException(explain(error)) from error


class ApplicationCommand(click.Command):
    """Takes MODULE:ATTR as its first argument too, where `--app` does not say it."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        options, *arguments = super().collect_usage_pieces(ctx)
        return [options, "[MODULE:ATTR]", *arguments]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        place = self._first_argument(args)
        is_named = any(arg.startswith("--app") for arg in args)
        if place is not None and not is_named and (not self._has_arguments or _SPEC.fullmatch(args[place])):
            args = ["--app", args[place], *args[:place], *args[place + 1 :]]
        return super().parse_args(ctx, args)

    @property
    def _has_arguments(self) -> bool:
        return any(isinstance(parameter, click.Argument) for parameter in self.params)

    def _first_argument(self, args: list[str]) -> int | None:
        takes_value = {
            name for option in self.params if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }  # fmt: skip
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] not in ("-", "--"):
            place += 2 if args[place] in takes_value else 1
        return place if place < len(args) and args[place] != "--" else None


def named_application(given: str | None) -> str:
    """MODULE:ATTR: `given`, else SQLA_JOBS_APP, else `[tool.sqla_jobs] app` in pyproject.toml.

    Raises `ConfigurationError` where nobody names one.
    """
    context = click.get_current_context(silent=True)
    hosted = context.meta.get(HOST) if context else None
    found = given or hosted or os.environ.get("SQLA_JOBS_APP") or _in_pyproject()
    if not found:
        raise ConfigurationError(
            "no application is named: give MODULE:ATTR, such as shop:jobs, or set SQLA_JOBS_APP, "
            'or write app = "shop:jobs" under [tool.sqla_jobs] in pyproject.toml'
        )
    return str(found)


def _in_pyproject() -> str | None:
    path = Path("pyproject.toml")
    if not path.is_file():
        return None
    try:
        app = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("sqla_jobs", {}).get("app")
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path.absolute()} cannot be read: {error}") from None
    if app is not None and not isinstance(app, str):
        raise ConfigurationError(
            f'{path.absolute()}: [tool.sqla_jobs] app must be text such as "MODULE:ATTR", got {app!r}'
        )
    return app


def application_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which application, and on which database."""
    app = click.option("--app", "application", metavar="MODULE:ATTR", help="The application; or as first argument.")
    url = click.option("--database-url", metavar="URL", help="Instead of the application's own; else DATABASE_URL.")
    return app(url(command))


def on_application(command: Callable[Concatenate[Jobs[Any], P], None]) -> Callable[..., None]:
    """A command on the named application, bound to its database."""

    @application_options
    @wraps(command)
    def run(application: str | None, database_url: str | None, *args: P.args, **options: P.kwargs) -> None:
        with plain_errors():
            jobs = load_jobs(named_application(application))
            bind_for_command_line(jobs, database_url)
            command(jobs, *args, **options)

    return run
