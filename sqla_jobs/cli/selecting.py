"""The options that select jobs, and checks for misspelled names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import click
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.actions.batches import UnknownBatch
from sqla_jobs.actions.selection import read_value, searching
from sqla_jobs.cli import durations
from sqla_jobs.cli.naming import right_usage
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.queues import read_work
from sqla_jobs.rules.value_checks import MAX_ID
from sqla_jobs.rules.wording import did_you_mean

JOB_ID = click.IntRange(0, MAX_ID)


def _arguments(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """Parse `order=17`. A value that is not JSON is taken as text."""
    found: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r} is not NAME=VALUE, such as order=17", context, option)
        found[name] = read_value(value)
    return found


_OPTIONS = (
    click.option("--state", "states", multiple=True, type=click.Choice([*JobState]), help="A state; repeatable."),
    click.option("--task", "tasks", multiple=True, help="The name of a task; repeatable."),
    click.option("--queue", "queues", multiple=True, help="The name of a queue; repeatable."),
    click.option("--batch", "batches", multiple=True, type=JOB_ID, metavar="ID", help="The id of a batch; repeatable."),
    click.option(
        *("--arg", "args"),
        multiple=True,
        metavar="NAME=VALUE",
        callback=_arguments,
        help="A stored argument, at any depth or in an array; repeatable.",
    ),
    click.option(
        *("--result", "results"),
        multiple=True,
        metavar="NAME=VALUE",
        callback=_arguments,
        help="A value in the result of a run; repeatable.",
    ),
    click.option("--error", metavar="TEXT", help="Part of the last run's error; case is ignored."),
    click.option(
        "--older-than",
        "before",
        metavar="TIME",
        callback=durations.since,
        help="Enqueued before this time, such as 7d (7 days ago) or 2026-03-29T14:30.",
    ),
    click.option("--newer-than", "after", metavar="TIME", callback=durations.since, help="Enqueued after this time."),
    click.option(
        "--ended-within", "ended_after", metavar="TIME", callback=durations.since, help="Ended after this time."
    ),
)


_NAMES = ("states", "tasks", "queues", "batches", "args", "results", "error", "before", "after", "ended_after")
"""Fields of a `Selection`, after which the options are named."""


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command the options in `_OPTIONS`, and pass it the `selection` that they make."""

    @wraps(command)
    def run(
        jobs: Jobs[Any],
        /,
        *args: Any,
        **options: Any,
    ) -> None:
        given = {name: options.pop(name) for name in _NAMES}
        with right_usage():
            selection = searching(jobs.tasks.sensitive, **given)
        command(jobs, *args, selection=selection, **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def check_tasks(jobs: Jobs[Any], tasks: Iterable[str]) -> None:
    """Raise `JobsError` for a task that neither the application nor any job has. It is probably misspelled."""
    known = set(jobs.tasks)
    with jobs._binding().session() as session:
        for task in set(tasks) - known:
            if session.scalar(sa.select(jobs.Job.id).where(jobs.Job.task == task).limit(1)) is None:
                raise JobsError(f"no job is of task {task!r}, and no task has that name{did_you_mean(task, known)}")


def check_batches(jobs: Jobs[Any], batches: Iterable[int]) -> None:
    """Raise `UnknownBatch` for a batch that does not exist."""
    with jobs._binding().session() as session:
        for batch_id in batches:
            if session.get(jobs.Batch, batch_id) is None:
                raise UnknownBatch(batch_id)


def check_queues(jobs: Jobs[Any], queues: Iterable[str]) -> None:
    """Raise `JobsError` for a queue that no job, worker or task uses."""
    with jobs._binding().session() as session:
        for queue in queues:
            check_queue(jobs, session, queue)


def check_queue(jobs: Jobs[Any], session: Session, queue: str, otherwise: str = "") -> None:
    """Raise `JobsError` for a queue that no job, worker or task uses. `otherwise` ends the message."""
    jobs.tasks.load()
    of_tasks = (str(task._declaration.defaults["queue"]) for task in jobs.tasks.values())
    queues, _ = read_work(session, jobs)
    known = {"default", *of_tasks, *(one.name for one in queues)}
    if queue not in known and session.scalar(sa.select(jobs.Job.id).where(jobs.Job.queue == queue).limit(1)) is None:
        near = did_you_mean(queue, known)
        raise JobsError(f"no job, worker or task has a queue {queue!r}{near}{otherwise}")
