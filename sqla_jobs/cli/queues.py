"""`pause` and `resume`."""

from __future__ import annotations

from typing import Any

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs.cli.application import ApplicationCommand, audited, changing, on_application
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.processes import read_processes
from sqla_jobs.monitoring.queues import read_queues, served_queues
from sqla_jobs.rules.wording import did_you_mean


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Also a queue that no job, worker or task of the application has.")
@audited
def pause(jobs: Jobs[Any], actor: str, queue: str, yes: bool) -> None:
    """Claim no more jobs from QUEUE; what runs goes on."""
    with changing(jobs, actor) as it:
        if not yes:
            _check_queue(jobs, it.session, queue)
        jobs.pause(it.session, queue)
        it.record("pause", f"queue {queue}")
    click.echo(f"queue {queue} is paused: what runs goes on, nothing new starts")


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("queue")
@audited
def resume(jobs: Jobs[Any], actor: str, queue: str) -> None:
    """Claim jobs from QUEUE again."""
    with changing(jobs, actor) as it:
        if it.session.get(jobs.Queue, queue) is None:
            paused = it.session.scalars(select(jobs.Queue.name)).all()
            raise JobsError(f"queue {queue!r} is not paused{did_you_mean(queue, paused)}")
        jobs.resume(it.session, queue)
        it.record("resume", f"queue {queue}")
    click.echo(f"queue {queue} goes on")


def _check_queue(jobs: Jobs[Any], session: Session, queue: str) -> None:
    """Raise `JobsError` for a queue that nobody knows of: it is a slip, as a rule."""
    jobs.tasks.load()
    of_tasks = (str(task.declaration.defaults["queue"]) for task in jobs.tasks.values())
    of_jobs = (one.name for one in read_queues(session, jobs, served_queues(read_processes(session, jobs))))
    known = {"default", *of_tasks, *of_jobs}
    if queue not in known and session.scalar(select(jobs.Job.id).where(jobs.Job.queue == queue).limit(1)) is None:
        near = did_you_mean(queue, known)
        raise JobsError(f"no job, worker or task has a queue {queue!r}{near}; --yes pauses it all the same")
