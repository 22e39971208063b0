"""Commands that run on one application and its database, and audit log entries for commands that change it."""

from __future__ import annotations

import atexit
import getpass
import socket
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import click
from sqlalchemy import event

from sqla_jobs.actions import audit
from sqla_jobs.cli.naming import application_options, named_application, output_on_stderr, plain_errors
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_jobs

P = ParamSpec("P")


def on_application(command: Callable[Concatenate[Jobs[Any], P], None]) -> Callable[..., None]:
    """Load the application that the command line names, bind it to its database, and pass it to `command`."""

    @application_options
    @wraps(command)
    def run(application: str | None, database_url: str | None, *args: P.args, **options: P.kwargs) -> None:
        with plain_errors():
            with output_on_stderr():
                jobs = load_jobs(named_application(application))
            bind_for_command_line(jobs, database_url)
            with _own_connections(jobs):
                command(jobs, *args, **options)

    return run


@contextmanager
def _own_connections(jobs: Jobs[Any]) -> Generator[None]:
    """Name the engine's connections after the command, unless they are already named. Close them at exit."""
    context = click.get_current_context()
    path = context.command_path.removeprefix(context.find_root().command_path).strip()
    name = f"sqla-jobs {path.removeprefix('jobs ')}"  # `flask jobs status` becomes `sqla-jobs status`

    def connect(dialect: object, record: object, positional: object, parameters: dict[str, Any]) -> None:
        parameters.setdefault("fallback_application_name", name)

    engine = None
    with suppress(Exception):  # some commands need no database; the others raise the error again
        engine = jobs._binding().engine
        event.listen(engine, "do_connect", connect)
        atexit.register(engine.dispose)
    try:
        yield
    finally:
        if engine is not None:
            event.remove(engine, "do_connect", connect)


def audited(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command an `actor` for the audit log."""

    @click.option("--actor", help="Who makes the change, for the audit log; USER@HOST by default.")
    @wraps(command)
    def run(*args: Any, actor: str | None, **options: Any) -> None:
        command(*args, actor=actor or f"{getpass.getuser()}@{socket.gethostname()}", **options)

    return run


def changing(jobs: Jobs[Any], actor: str) -> AbstractContextManager[audit.Changing]:
    """Return a transaction on the application's database that writes audit log entries for `actor`."""
    return audit.changing(jobs._binding(), jobs._models, jobs.tasks, actor)
