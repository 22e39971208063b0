"""The commands `pause` and `resume`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

import click

from sqla_jobs.actions import pausing
from sqla_jobs.cli.application import actor_option, changing, on_application
from sqla_jobs.cli.durations import moment
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.cli.output import till
from sqla_jobs.cli.selecting import check_queue
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.paused import names_of, read_paused_queues, read_paused_tasks
from sqla_jobs.rules.wording import did_you_mean


def _queue_or_task(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command a `queue` or a `task`, and None for the other one."""

    @click.argument("queue", required=False)
    @click.option("--task", help="A task, by name or alias, in all queues.")
    @wraps(command)
    def run(*args: Any, queue: str | None, task: str | None, **options: Any) -> None:
        if (queue is None) == (task is None):
            raise click.UsageError("name either a queue or --task NAME")
        command(*args, queue=queue, task=task, **options)

    return run


@click.command(cls=ApplicationCommand)
@on_application
@_queue_or_task
@click.option("--reason", help="The reason, shown by `status`.")
@click.option(
    "--until",
    metavar="TIME|MOMENT",
    type=moment,
    help="Resume automatically: after 90s, 15m, 12h, 7d, or at 2026-03-29T14:30, in UTC.",
)
@click.option("--yes", is_flag=True, help="Accept a queue that no job, worker or task of the application uses.")
@actor_option
def pause(
    jobs: Jobs[Any],
    actor: str,
    queue: str | None,
    task: str | None,
    reason: str | None,
    until: datetime | timedelta | None,
    yes: bool,
) -> None:
    """Pause QUEUE or a task: no more jobs start, running jobs continue."""
    with changing(jobs, actor) as it:
        if queue is not None and not yes:
            check_queue(jobs, it.session, queue, "; --yes pauses it all the same")
        subject = pausing.pause(it, queue, task=task, reason=reason, until=until)
    click.echo(f"{subject} is paused{till(until)}: no more jobs start, running jobs continue")


@click.command(cls=ApplicationCommand)
@on_application
@_queue_or_task
@actor_option
def resume(jobs: Jobs[Any], actor: str, queue: str | None, task: str | None) -> None:
    """Resume a paused QUEUE or task."""
    with changing(jobs, actor) as it:
        known = read_paused_queues(it.session, jobs) if task is None else names_of(read_paused_tasks(it.session, jobs))
        kind, name = ("queue", str(queue)) if task is None else ("task", task)
        if name not in known:
            raise JobsError(f"{kind} {name!r} is not paused{did_you_mean(name, known)}")
        subject = pausing.resume(it, queue, task=task)
    click.echo(f"{subject} is resumed")
