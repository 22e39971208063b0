"""The command `dev`, which runs everything that an application needs on its developer's machine, in one terminal."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Pipe
from pathlib import Path
from types import FrameType
from typing import Self

import click

from sqla_jobs.cli.dev_messages import Answer, Failed, Order, Ready, Said, Unbound
from sqla_jobs.cli.naming import ApplicationCommand, application_options, named_application, plain_errors, right_usage
from sqla_jobs.cli.running import parse_queues
from sqla_jobs.database.shard_name import Where
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.postgres import LocalServer
from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.supervisor.options import Application, ChildSpec, SupervisorOptions
from sqla_jobs.supervisor.reload import on_change
from sqla_jobs.supervisor.supervisor import Supervisor

_FOLDER = Path(".sqla-jobs")
_ENDS_WITHIN = 5.0
"""How many seconds the dashboard's process and running jobs have to end."""


@click.command(cls=ApplicationCommand)
@application_options
@click.option(
    "--queues", metavar="mail=2,default", help="Queues to serve; by default those configured, or all tasks' queues."
)
@click.option("--concurrency", default=4, show_default=True, help="Concurrent jobs in each queue.")
@click.option(
    "--port",
    default=8642,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the dashboard; 0: any free one.",
)
def dev(
    application: str | None, urls: dict[str, str], shard: str | None, queues: str | None, concurrency: int, port: int
) -> None:
    """Run a database, a worker and the dashboard in this terminal, for development. Ctrl-C ends all of them.

    The database is --database-url, else the application's own, else DATABASE_URL. If no database is named, a PostgreSQL
    server is started, which keeps its data in the folder .sqla-jobs. Tables are created or upgraded, unless the
    application has an Alembic history. The worker restarts when a Python file changes, and writes a line for each job
    that ends. After Ctrl-C, running jobs have 5 seconds to end.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with plain_errors(), ExitStack() as running:
        if importlib.util.find_spec("watchfiles") is None:
            raise ConfigurationError('`dev` needs watchfiles: pip install "sqla-jobs[reload]"')
        name, where = named_application(application), Where(urls, shard)
        with right_usage():
            _settings(queues, concurrency)
        logs = LogOptions("INFO", "short", jobs=True)
        logs.set_up(name)
        ready = running.enter_context(_Site(name, where, None, port)).answer()
        if ready is None:
            server = running.enter_context(_private_server())
            os.environ["DATABASE_URL"] = server.url
            ready = running.enter_context(_Site(name, where, server.url, port)).answer()
            click.echo("Enqueue from another terminal with this DATABASE_URL, such as by sqla-jobs enqueue")
        if ready is None:
            raise ConfigurationError(f"{name} names no database, and takes none from DATABASE_URL: give --database-url")
        click.echo(f"Dashboard (works once, for one browser): {ready.dashboard}")
        settings = _settings(ready.queues if queues is None else queues, concurrency)
        supervisor = _supervisor(Application(name, logs), where, settings)
        on_change(supervisor.replace_all)
        code = supervisor.run(hangup=_stop)
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _settings(queues: str | None, concurrency: int) -> Settings:
    return Settings.checked(parse_queues(queues, concurrency), concurrency=concurrency, grace=_ENDS_WITHIN)


def _supervisor(application: Application, where: Where, settings: Settings) -> Supervisor:
    spec = ChildSpec(where, settings, drain=False, clock=True, logs=application.logs)
    options = SupervisorOptions(reload=True)
    return Supervisor(application, lambda _: (spec, options), options)


@contextmanager
def _private_server() -> Generator[LocalServer]:
    _FOLDER.mkdir(exist_ok=True)
    ignored = _FOLDER / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
    data = _FOLDER / "postgres"
    with LocalServer(data_directory=data, durable=True) as server:
        click.echo(f"PostgreSQL, with its data in {data}: DATABASE_URL={server.url}")
        yield server


class _Site:
    """The process that runs `dev_site`, started on creation."""

    def __init__(self, application: str, where: Where, private_url: str | None, port: int) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen[bytes](
                [sys.executable, "-m", "sqla_jobs.cli.dev_site", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal must reach only this process
            )
        self._pipe.send(Order(sys.path, application, where, private_url, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS_WITHIN)
        self._process.kill()
        self._process.wait()

    def answer(self) -> Ready | None:
        """Show the process's messages until it is ready. Return None if the application names no database.

        Raises `ClickException`.
        """
        while True:
            match self._received():
                case Said(line):
                    click.echo(line)
                case Failed(reason):
                    raise click.ClickException(reason)
                case Ready() as ready:
                    return ready
                case Unbound():
                    self._process.wait()
                    return None

    def _received(self) -> Answer:
        try:
            answer: Answer = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return Failed(f"the process of the dashboard {how}")
        return answer
