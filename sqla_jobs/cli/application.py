"""Which application a command is about, and what goes wrong told in one message."""

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
from sqla_jobs.cli.naming import application_options, named_application, plain_errors, told_apart
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_jobs

P = ParamSpec("P")


def on_application(command: Callable[Concatenate[Jobs[Any], P], None]) -> Callable[..., None]:
    """A command on the named application, bound to its database."""

    @application_options
    @wraps(command)
    def run(application: str | None, database_url: str | None, *args: P.args, **options: P.kwargs) -> None:
        with plain_errors():
            with told_apart():
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
