"""Which application a command is about, and what goes wrong told in one message."""

from __future__ import annotations

import atexit
import getpass
import os
import re
import socket
import tomllib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
from sqlalchemy import event

from sqla_jobs.actions import audit
from sqla_jobs.cli.output import HOST, remedy
from sqla_jobs.database.explain import EXPLAINED, explain
from sqla_jobs.errors import ArgumentsError, ConfigurationError, DeclarationError, JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_jobs

P = ParamSpec("P")
_SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*(\(\))?")


@contextmanager
def plain_errors() -> Generator[None]:
    """What a person can cause is one message and exit code 1, without a traceback."""
    try:
        yield
    except EXPLAINED as error:
        raise click.ClickException(remedy(explain(error))) from error


@contextmanager
def right_usage() -> Generator[None]:
    """What no option or argument can be is a wrong command line: exit code 2."""
    try:
        yield
    except (ArgumentsError, ConfigurationError, DeclarationError) as error:
        raise click.UsageError(str(error)) from None


class ApplicationCommand(click.Command):
    """Takes MODULE:ATTR as its first argument too, where `--app` does not say it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_named = self._names_application(args)
        return super().parse_args(ctx, args if is_named else ["", *args])

    def _names_application(self, args: list[str]) -> bool:
        """Whether the first of the arguments is the application: click knows no optional one before others."""
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        look = click.Command(self.name, params=[*options, click.Argument(["words"], nargs=-1)])
        given = look.make_context(self.name, [*args], resilient_parsing=True).params
        if given.get("application") or not given.get("words"):
            return False
        is_alone = len(self.params) == len(options) + 1
        return is_alone or _SPEC.fullmatch(given["words"][0]) is not None


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
    first = click.argument("first", required=False, metavar="[MODULE:ATTR]")
    app = click.option("--app", "application", metavar="MODULE:ATTR", help="The application; or as first argument.")
    url = click.option("--database-url", metavar="URL", help="Instead of the application's own; else DATABASE_URL.")

    @wraps(command)
    def run(*args: Any, first: str | None, application: str | None, **options: Any) -> None:
        command(*args, application=first or application, **options)

    return first(app(url(run)))


def on_application(command: Callable[Concatenate[Jobs[Any], P], None]) -> Callable[..., None]:
    """A command on the named application, bound to its database."""

    @application_options
    @wraps(command)
    def run(application: str | None, database_url: str | None, *args: P.args, **options: P.kwargs) -> None:
        with plain_errors():
            jobs = load_jobs(named_application(application))
            bind_for_command_line(jobs, database_url)
            with _own_connections(jobs):
                command(jobs, *args, **options)

    return run


@contextmanager
def _own_connections(jobs: Jobs[Any]) -> Generator[None]:
    """The engine's connections say which command has them, unless they are named already, and end with the program."""
    context = click.get_current_context()
    path = context.command_path.removeprefix(context.find_root().command_path).strip()
    name = f"sqla-jobs {path.removeprefix('jobs ')}"  # `flask jobs status` is `sqla-jobs status`

    def connect(dialect: object, record: object, positional: object, parameters: dict[str, Any]) -> None:
        parameters.setdefault("fallback_application_name", name)

    engine = None
    with suppress(JobsError):  # some commands do without
        engine = jobs.binding().engine
        event.listen(engine, "do_connect", connect)
        atexit.register(engine.dispose)
    try:
        yield
    finally:
        if engine is not None:
            event.remove(engine, "do_connect", connect)


def audited(command: Callable[..., None]) -> Callable[..., None]:
    """Gives the command an `actor`, for the audit."""

    @click.option("--actor", help="Who makes the change, for the audit; USER@HOST unless given.")
    @wraps(command)
    def run(*args: Any, actor: str | None, **options: Any) -> None:
        command(*args, actor=actor or f"{getpass.getuser()}@{socket.gethostname()}", **options)

    return run


def changing(jobs: Jobs[Any], actor: str) -> AbstractContextManager[audit.Changing]:
    """A transaction of `actor`'s on the database that the application is bound to."""
    return audit.changing(jobs.binding(), jobs.models, jobs.tasks, actor)
