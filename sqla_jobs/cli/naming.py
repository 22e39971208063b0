"""Helpers that find a command's application and turn errors into one message. They do not import SQLAlchemy."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path

import click

from sqla_jobs.database.shard_name import SHARD_NAME
from sqla_jobs.errors import ArgumentsError, ConfigurationError, DeclarationError

HOST = "sqla_jobs.application"
"""The key in `Context.meta` under which a host program, such as `flask`, stores MODULE:ATTR."""
NAMED = "sqla_jobs.named"
"""The key in `Context.meta` under which a command stores the MODULE:ATTR that it found, for messages."""
_SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*(\(\))?")


@contextmanager
def plain_errors() -> Generator[None]:
    """Turn an error that a user can cause into one message and exit code 1, without a traceback."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        from sqla_jobs.cli.output import remedy
        from sqla_jobs.database.explain import explain, explained

        if (known := explained(error)) is None:
            raise
        raise click.ClickException(remedy(explain(known))) from error


def output_on_stderr() -> AbstractContextManager[object]:
    """Redirect the application's prints to standard error. Standard output then contains only the command's output."""
    return redirect_stdout(sys.stderr)


@contextmanager
def right_usage() -> Generator[None]:
    """Turn an error about the value of an option or argument into exit code 2."""
    try:
        yield
    except (ArgumentsError, ConfigurationError, DeclarationError) as error:
        raise click.UsageError(str(error)) from None


class ApplicationCommand(click.Command):
    """A command whose first word may be MODULE:ATTR, instead of `--app`."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[MODULE:ATTR]", *super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        has_app = any(one.partition("=")[0] == "--app" for one in args)
        is_named = bool(args) and not has_app and _SPEC.fullmatch(args[0]) is not None
        later = [] if is_named or has_app else list(filter(_SPEC.fullmatch, args))
        try:
            return super().parse_args(ctx, ["--app", *args] if is_named else args)
        except click.UsageError as error:
            if not later:
                raise
            said = error.format_message().rstrip(".")
            raise click.UsageError(f"{said}; write {later[0]} as the first word after {ctx.info_name}", ctx) from None


def named_application(given: str | None) -> str:
    """Return MODULE:ATTR: `given`, else SQLA_JOBS_APP, else `[tool.sqla_jobs] app` in pyproject.toml.

    Raises `ConfigurationError` if none is named, or if the name is malformed.
    """
    context = click.get_current_context(silent=True)
    hosted = context.meta.get(HOST) if context else None
    found = given or hosted or os.environ.get("SQLA_JOBS_APP") or _in_pyproject()
    if not found:
        raise ConfigurationError(
            "no application is named: give MODULE:ATTR, such as shop:jobs, or set SQLA_JOBS_APP, "
            'or write app = "shop:jobs" under [tool.sqla_jobs] in pyproject.toml'
        )
    if ":" not in str(found):  # before anything is imported or started
        raise ConfigurationError(f"{found!r}: write MODULE:ATTR, such as shop:jobs or shop:create_app()")
    if context:
        context.meta[NAMED] = str(found)
    return str(found)


def _in_pyproject() -> str | None:
    path = Path("pyproject.toml")
    if not path.is_file():
        return None
    try:
        app = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("sqla_jobs", {}).get("app")
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path.absolute()} cannot be read: {error}") from None
    return None if app is None else str(app)


def application_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command the options that name the application and its database: `application`, `urls` and `shard`."""
    app = click.option(
        *("--app", "application"),
        metavar="MODULE:ATTR",
        help="The application; also accepted as the first word after the command.",
    )
    url = click.option(
        *("--database-url", "urls"),
        metavar="[NAME=]URL",
        multiple=True,
        callback=_by_name,
        help="The database; by default the application's own, else DATABASE_URL. With a name, repeatable.",
    )
    shard = click.option("--shard", metavar="NAME", help="One of several databases.")
    return app(url(shard(command)))


def _by_name(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Return URLs by name. The name of a single URL may be missing; its name is then empty."""
    urls: dict[str, str] = {}
    for one in given:
        name, is_named, url = one.partition("=")
        if not (is_named and SHARD_NAME.fullmatch(name)):
            name, url = "", one
        if name in urls or (len(given) > 1 and not name):
            raise click.UsageError("--database-url: give one URL, or several, each with its own name: eu=URL")
        urls[name] = url
    return urls
