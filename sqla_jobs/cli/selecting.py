"""The options that select jobs, and checks for misspelled names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.actions.batches import UnknownBatch
from sqla_jobs.actions.selection import FILTERS, Selection, read_selection
from sqla_jobs.cli.naming import right_usage
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.queues import read_work
from sqla_jobs.rules.value_checks import MAX_ID
from sqla_jobs.rules.wording import did_you_mean

JOB_ID = click.IntRange(0, MAX_ID)


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command an option for each filter. `selection_in` reads them."""
    for one in reversed(FILTERS):
        name = f"--{one.name.replace('_', '-')}"
        kind = click.Choice(one.choices) if one.choices else click.STRING
        command = click.option(name, one.name, multiple=True, type=kind, metavar=one.metavar, help=one.help)(command)
    return command


def selection_in(jobs: Jobs[Any], given: Mapping[str, Any]) -> Selection:
    """Return the selection that the options in `given` make. Raises `JobsError` for a name that nothing has."""
    with right_usage():
        selection = read_selection(jobs.tasks.sensitive, {one.name: given[one.name] for one in FILTERS})
    check_tasks(jobs, selection.tasks)
    with jobs._binding().session() as session:
        for queue in selection.queues:
            check_queue(jobs, session, queue)
        for batch_id in selection.batches:
            if session.get(jobs.Batch, batch_id) is None:
                raise UnknownBatch(batch_id)
    return selection


def half_searched(selection: Selection) -> str:
    """Return a note about the tasks whose jobs may be missing from the matches."""
    tasks = ", ".join(selection.half_searched)
    return f"sensitive arguments of {tasks}, and what may repeat them, are not searched: select such jobs by id"


def check_tasks(jobs: Jobs[Any], tasks: Iterable[str]) -> None:
    """Raise `JobsError` for a task that neither the application nor any job has. It is probably misspelled."""
    known = set(jobs.tasks)
    with jobs._binding().session() as session:
        for task in set(tasks) - known:
            if session.scalar(sa.select(jobs.Job.id).where(jobs.Job.task == task).limit(1)) is None:
                raise JobsError(f"no job is of task {task!r}, and no task has that name{did_you_mean(task, known)}")


def check_queue(jobs: Jobs[Any], session: Session, queue: str, otherwise: str = "") -> None:
    """Raise `JobsError` for a queue that no job, worker or task uses. `otherwise` ends the message."""
    jobs.tasks.load()
    of_tasks = (str(task._declaration.defaults["queue"]) for task in jobs.tasks.values())
    queues, _ = read_work(session, jobs)
    known = {"default", *of_tasks, *(one.name for one in queues)}
    if queue not in known and session.scalar(sa.select(jobs.Job.id).where(jobs.Job.queue == queue).limit(1)) is None:
        near = did_you_mean(queue, known)
        raise JobsError(f"no job, worker or task has a queue {queue!r}{near}{otherwise}")
