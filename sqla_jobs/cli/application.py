"""Commands that run on one application and its database, and audit log entries for commands that change it."""

from __future__ import annotations

import atexit
import getpass
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec

import click
from sqlalchemy.exc import OperationalError

from sqla_jobs.actions import audit
from sqla_jobs.cli.naming import application_options, named_application, output_on_stderr, plain_errors
from sqla_jobs.database.outages import is_outage, told
from sqla_jobs.database.shard_name import Where, shard_named, working_in
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_jobs

P = ParamSpec("P")


def on_application(command: Callable[Concatenate[Jobs[Any], P], None]) -> Callable[..., None]:
    """Load the application that the command line names, bind it to its database, and pass it to `command`."""

    @application_options
    @wraps(command)
    def run(
        application: str | None, urls: dict[str, str], shard: str | None, *args: P.args, **options: P.kwargs
    ) -> None:
        with shard_named(shard or ""), plain_errors():
            with output_on_stderr():
                jobs = load_jobs(named_application(application))
            jobs = bind_for_command_line(jobs, Where(urls, shard))
            if len(jobs.shards) == 1:
                jobs = jobs.shard(*jobs.shards)
            with _own_connections(jobs):
                command(jobs, *args, **options)

    return run


def in_each_shard(command: Callable[..., None]) -> Callable[..., None]:
    """Call `command` for each database, if there are several, and exit with the highest of its exit codes.

    A database that cannot be reached does not keep the command from the others.
    """

    @wraps(command)
    def run(jobs: Jobs[Any], **options: Any) -> None:
        if not jobs.shards or options.get("as_json"):
            command(jobs, **options)  # for several databases, it asks for --shard
            return
        heading = "-- == {} ==" if options.get("sql") else "== {} =="
        codes: list[int] = []
        for name in jobs.shards:
            click.echo(heading.format(name))
            codes.append(working_in(name, partial(_code_in, jobs.shard(name), name, partial(command, **options))))
        sys.exit(max(codes))

    return run


def _code_in(jobs: Jobs[Any], name: str, command: Callable[[Jobs[Any]], None]) -> int:
    try:
        with plain_errors(), _own_connections(jobs):
            command(jobs)
    except click.ClickException as error:
        # named as in log lines: the heading goes to another stream
        click.echo(f"Error: [{name}] {error.format_message()}", err=True)
        return error.exit_code
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@contextmanager
def _own_connections(jobs: Jobs[Any]) -> Generator[None]:
    """Close the engine's connections at exit. Let an error say that there is an outage, and since when if known."""
    engine = None
    with suppress(Exception):  # some commands need no database; the others raise the error again
        engine = jobs._binding().engine
        atexit.register(engine.dispose)
    try:
        yield
    except OperationalError as error:
        if engine is None or not is_outage(error):
            raise
        raise ConfigurationError(told(engine, error)) from error


def _own_name() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


actor_option: Callable[[Any], Any] = click.option(
    "--actor", default=_own_name, show_default="USER@HOST", help="Who makes the change, for the audit log."
)
"""The option that names the person who makes a change."""


def changing(jobs: Jobs[Any], actor: str) -> AbstractContextManager[audit.Changing]:
    """Return a transaction on the application's database that writes audit log entries for `actor`."""
    return audit.changing(jobs._binding(), jobs._models, jobs.tasks, actor)
