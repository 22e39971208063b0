"""The command line: `sqla-jobs`, `python -m sqla_jobs` and `python -m sqla_jobs.worker`.

Exit codes: 0 done, 1 something went wrong and is named on standard error, 2 the command line is wrong.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import click
from sqlalchemy import select

from sqla_jobs.clock.sync import retire, sync
from sqla_jobs.core import Jobs
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.explain import EXPLAINED, explain
from sqla_jobs.loading import bind_for_command_line, load_jobs
from sqla_jobs.status import Status, read_status
from sqla_jobs.worker.child import Order, set_up_logging
from sqla_jobs.worker.reload import on_change
from sqla_jobs.worker.settings import Settings
from sqla_jobs.worker.supervisor import Supervisor, Upkeep

P = ParamSpec("P")


@contextmanager
def _plain_errors() -> Generator[None]:
    """What a person can cause is one message and exit code 1, without a traceback."""
    try:
        yield
    except EXPLAINED as error:
        raise click.ClickException(explain(error)) from error


def _on_application(command: Callable[Concatenate[Jobs[Any], P], None]) -> Callable[..., None]:
    """A command on the application named by MODULE:ATTR, bound to its database."""

    @click.argument("application", metavar="MODULE:ATTR")
    @click.option("--database-url", metavar="URL", help="Instead of the application's own; else DATABASE_URL.")
    @wraps(command)
    def run(application: str, database_url: str | None, *args: P.args, **options: P.kwargs) -> None:
        with _plain_errors():
            jobs = load_jobs(application)
            bind_for_command_line(jobs, database_url)
            command(jobs, *args, **options)

    return run


def _parse_queues(text: str | None, concurrency: int) -> dict[str, int]:
    """`mail=2,default=8`, or names alone with `concurrency` each. Raises `ConfigurationError`."""
    queues: dict[str, int] = {}
    for item in ("default" if text is None else text).split(","):
        name, given, number = item.strip().partition("=")
        if name in queues:
            raise ConfigurationError(f"--queues {text}: {name!r} is named twice")
        if given and not number.isdecimal():
            raise ConfigurationError(f"--queues {text}: {item!r} is not NAME or NAME=NUMBER")
        queues[name] = int(number) if given else concurrency
    return queues


def _check_log_level(level: str) -> None:
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigurationError(f"--log-level {level}: DEBUG, INFO, WARNING or ERROR")


@click.group()
def main() -> None:
    """Background jobs in your own PostgreSQL database."""


@main.command()
@click.argument("application", metavar="MODULE:ATTR")
@click.option("--database-url", metavar="URL", help="Instead of the application's own; else DATABASE_URL.")
@click.option("--queues", metavar="mail=2,default=8", help="Queues to serve, each with its number of jobs at once.")
@click.option("--concurrency", default=8, show_default=True, help="Jobs at once, of each queue named without a number.")
@click.option("--processes", default=1, show_default=True, help="Processes, each with all of these queues.")
@click.option("--drain", is_flag=True, help="Run what is due, then end.")
@click.option("--clock/--no-clock", default=True, show_default=True, help="Enqueue what schedules say, too.")
@click.option("--reload", is_flag=True, help="Start anew when a Python file changes; for development.")
@click.option("--heartbeat", default=5.0, show_default=True, help="Seconds between two signs of life.")
@click.option("--lease", default=30.0, show_default=True, help="Seconds without one, after which it is dead.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds running jobs have to end on SIGTERM.")
@click.option("--kill-after", default=10.0, show_default=True, help="Seconds past its timeout that a job may go on.")
@click.option("--max-jobs", default=0, help="Replace a process after that many jobs.")
@click.option("--max-memory", default=0, metavar="MB", help="Replace a process that was larger than this.")
@click.option("--slow", default=300.0, show_default=True, help="Log the stack of a job after that many seconds.")
@click.option("--log-level", default="INFO", show_default=True, help="DEBUG tells of every job.")
def worker(
    application: str,
    database_url: str | None,
    queues: str | None,
    concurrency: int,
    processes: int,
    drain: bool,
    clock: bool,
    reload: bool,
    heartbeat: float,
    lease: float,
    grace: float,
    kill_after: float,
    max_jobs: int,
    max_memory: int,
    slow: float,
    log_level: str,
) -> None:
    """Run jobs until SIGTERM or SIGINT; a second signal ends at once. SIGHUP starts anew, one process by one."""
    with _plain_errors():
        _check_log_level(log_level)
        settings = Settings.checked(
            _parse_queues(queues, concurrency),
            concurrency=concurrency,
            heartbeat=heartbeat,
            lease=lease,
            poll=1.0,
            grace=grace,
            slow=slow,
        )
        upkeep = Upkeep(processes, max_jobs, max_memory * 2**20, kill_after, reload)
    set_up_logging(log_level)
    supervisor = Supervisor(Order(application, database_url, settings, drain, clock, log_level), upkeep)
    if reload:
        on_change(supervisor.replace_all)
    code = supervisor.run()
    if drain and code == 0:
        click.echo(f"{supervisor.runs} runs")
    sys.exit(code)


@main.command()
@_on_application
@click.option("--heartbeat", default=5.0, show_default=True, help="Seconds between two signs of life.")
@click.option("--lease", default=30.0, show_default=True, help="Seconds without one, after which it is dead.")
@click.option("--log-level", default="INFO", show_default=True, help="DEBUG tells more.")
def clock(jobs: Jobs[Any], heartbeat: float, lease: float, log_level: str) -> None:
    """Enqueue what schedules say, until SIGTERM or SIGINT. Workers do so too, unless told --no-clock."""
    _check_log_level(log_level)
    set_up_logging(log_level)
    jobs.clock(heartbeat=heartbeat, lease=lease).run()


@main.group()
def schedule() -> None:
    """Schedules: rows that say by cron what is enqueued when."""


@schedule.command("list")
@_on_application
def list_schedules(jobs: Jobs[Any]) -> None:
    """All schedules, with their next ticks."""
    with jobs.binding().session_factory() as session:
        for one in session.scalars(select(jobs.Schedule).order_by(jobs.Schedule.name)):
            if not one.enabled:
                then = f"disabled: {one.reason or 'no reason given'}"
            else:
                then = f"next {one.next_run_at}" if one.next_run_at else "no clock has seen it yet"
            click.echo(f"{one.name}  {one.task}  {one.cron}  {one.timezone}  {then}")


@schedule.command("sync")
@_on_application
@click.option("--prune", is_flag=True, help="Disable at once what code declared once and does not any more.")
@click.option("--reset", is_flag=True, help="Take back what operators changed.")
def sync_schedules(jobs: Jobs[Any], prune: bool, reset: bool) -> None:
    """Make rows of what code declares. Clocks do so when they start."""
    jobs.tasks.load()
    with jobs.binding().transaction() as session:
        sync(session, jobs.models, jobs.schedules, reset=reset)
        retired = retire(session, jobs.models, jobs.schedules, timedelta(0)) if prune else []
    click.echo(f"{len(jobs.schedules)} schedules are declared in code")
    for name in retired:
        click.echo(f"disabled: {name}")


@main.command()
@_on_application
def status(jobs: Jobs[Any]) -> None:
    """Queues, processes, and what waits for a task that nobody knows."""
    jobs.tasks.load()
    with jobs.binding().session_factory() as session:
        _print_status(read_status(session, jobs))


def _print_status(status: Status) -> None:
    click.echo("QUEUE                 QUEUED  SCHEDULED  RUNNING  OLDEST WAIT")
    for queue in status.queues:
        paused = "  paused" if queue.paused else ""
        wait = "-" if queue.oldest_wait is None else f"{queue.oldest_wait:.0f} s"
        click.echo(f"{queue.name:<20}  {queue.queued:>6}  {queue.scheduled:>9}  {queue.running:>7}  {wait:>11}{paused}")
    click.echo("\nPROCESS                               HOST                    PID  LAST BEAT  QUEUES")
    for process in status.processes:
        served = ",".join(f"{name}={number}" for name, number in process.queues.items())
        dead = "" if process.alive else "  dead"
        click.echo(
            f"{process.id}  {process.host:<18}  {process.pid:>7}  {process.beat_age:>6.0f} s ago  {served}{dead}"
        )
        for job in process.running:
            click.echo(f"    job {job.job_id} {job.task} attempt {job.attempt}, for {job.seconds:.0f} s")
    for warning in status.warnings:
        click.echo(f"\nwarning: {warning}", err=True)
