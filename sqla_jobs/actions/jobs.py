"""What people do to jobs, in a transaction of theirs."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from psycopg.errors import UniqueViolation
from sqlalchemy import ColumnElement, case, func, null, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.actions.pruning import EndedJobs, Old, OrphanedRuns
from sqla_jobs.actions.pruning import prune as pruned
from sqla_jobs.database.commits import savepoint
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.refusals import warn
from sqla_jobs.errors import ArgumentsError, ConfigurationError, JobsError, UnknownJob
from sqla_jobs.models.columns import JobMixin, ScheduleMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, LIVE, MAX_ATTEMPTS, MOST_ATTEMPTS, PARKED, WAITING, JobState
from sqla_jobs.queries.delete_jobs import Removal
from sqla_jobs.queries.leftovers import Leftovers
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.rules.checks import check_moment, check_seconds
from sqla_jobs.tasks.enqueue import check_common


def cancel(session: Session, models: Models[Any], job: JobMixin | int, *, kill: bool = False) -> bool:
    """A waiting job ends `cancelled`, and one that failed and holds an ordered key; a running one is asked to.

    False: it had ended already.
    """
    wanted = models.Job.state.in_(LIVE) | keeps_others_waiting(models)
    changed = _change(session, models, job, wanted, cancelled(models, kill=kill))
    if changed is not None and changed.ordered_by is not None:  # the next one of its key may start
        after_commit(session, models.Job, models.channel, "")
    return changed is not None


def cancelled(models: Models[Any], *, kill: bool = False) -> dict[str, Any]:
    """What cancelling sets in a live job. A request to kill is not taken back by one without."""
    job = models.Job
    runs = job.state == JobState.running
    return {
        "state": case((runs, job.state), else_="cancelled"),
        "finished_at": case((runs, null()), else_=func.clock_timestamp()),
        "cancel_requested_at": func.coalesce(job.cancel_requested_at, func.clock_timestamp()),
        "kill_requested": True if kill else job.kill_requested,
    }


def retry(session: Session, models: Models[Any], job: JobMixin | int) -> bool:
    """A job that ended or waits is queued at once, with at least one attempt left. False: it is under way."""
    after_commit(session, models.Job, models.channel, "")
    session.flush()  # what is wrong with the caller's own rows is told as it is
    try:
        with savepoint(session, models.Job):
            wanted = models.Job.state.not_in(["queued", "running"]) & has_arguments(models)
            is_retried = _change(session, models, job, wanted, retried(models)) is not None
    except IntegrityError as error:
        if not isinstance(error.orig, UniqueViolation):
            raise
        raise JobsError(
            f"job {id_of(session, job)} cannot be retried: another live job has its unique_key; "
            "wait for that one, or cancel it"
        ) from error
    if not is_retried:
        _refuse_erased(session, models, id_of(session, job))
    return is_retried


def has_arguments(models: Models[Any]) -> ColumnElement[bool]:
    """Whether the job could run again: its arguments were not erased."""
    return func.jsonb_typeof(models.Job.args) == "object"


def _refuse_erased(session: Session, models: Models[Any], job_id: int) -> None:
    if session.scalar(select(models.Job.id).where(models.Job.id == job_id, ~has_arguments(models))) is not None:
        raise JobsError(f"job {job_id} cannot be retried, since its arguments were erased: enqueue a new job instead")


def retried(models: Models[Any]) -> dict[str, Any]:
    """What a retry sets in a job that ended or waits."""
    job = models.Job
    return {
        "state": "queued",
        "position": models.positions.next_value(),
        "run_at": func.clock_timestamp(),
        "max_attempts": func.least(func.greatest(job.max_attempts, job.attempt + 1), MOST_ATTEMPTS),
        "finished_at": null(),
        "cancel_requested_at": null(),
        "kill_requested": False,
    }


def run_schedule(session: Session, models: Models[Any], schedule: ScheduleMixin, tasks: Mapping[str, Any]) -> JobMixin:
    """A job of a schedule for now, whatever its rule says and whether or not it is enabled."""
    known = tasks[schedule.task].declaration.defaults if schedule.task in tasks else {}
    after_commit(session, models.Job, models.channel, "")
    job: JobMixin = models.Job(
        task=schedule.task,
        queue=schedule.queue,
        priority=schedule.priority,
        args=schedule.args,
        max_attempts=known.get("max_attempts", MAX_ATTEMPTS),
        on_failure=known.get("on_failure"),
        schedule_id=schedule.id,
        state=JobState.queued,
    )
    session.add(job)
    return job


def reschedule(session: Session, models: Models[Any], job: JobMixin | int, run_at: datetime) -> bool:
    """A waiting job waits until `run_at`, which has a time zone. False: it does not wait."""
    check_run_at(run_at)
    table = models.Job
    after_commit(session, table, models.channel, "")
    return _change(session, models, job, table.state.in_(WAITING), rescheduled(run_at)) is not None


def check_run_at(run_at: datetime | timedelta) -> None:
    """Raise `ArgumentsError` for what no job can be rescheduled to."""
    if isinstance(run_at, timedelta):
        check_seconds("run_at", run_at)
    elif run_at.utcoffset() is None:
        raise ArgumentsError(f"run_at must be a datetime with a time zone, got {run_at!r}")
    elif run_at != PARKED:
        check_moment("run_at", run_at)


def rescheduled(run_at: datetime | timedelta) -> dict[str, Any]:
    """What rescheduling sets in a job that waits: a moment, or that long from now."""
    due = func.clock_timestamp() + run_at if isinstance(run_at, timedelta) else run_at
    return {"state": "scheduled", "run_at": due}


def move(
    session: Session, models: Models[Any], job: JobMixin | int, *, queue: str | None = None, priority: int | None = None
) -> bool:
    """A waiting job goes to the end of another queue or priority. False: it does not wait.

    A job of an ordered key keeps its place there: queue and priority change nothing in that order.
    """
    check_move(queue, priority)
    table = models.Job
    after_commit(session, table, models.channel, "")
    return _change(session, models, job, table.state.in_(WAITING), moved(models, queue, priority)) is not None


def check_move(queue: str | None, priority: int | None) -> None:
    """Raise `ArgumentsError` for where no job can be moved to."""
    if queue is None and priority is None:
        raise ArgumentsError("neither queue= nor priority= is given: name the one to change")
    check_common(given_place(queue, priority))


def moved(models: Models[Any], queue: str | None, priority: int | None) -> dict[str, Any]:
    """What moving sets in a job that waits."""
    job = models.Job
    position = case((job.ordered_by.is_not(None), job.position), else_=models.positions.next_value())
    return {**given_place(queue, priority), "position": position}


def given_place(queue: str | None, priority: int | None) -> dict[str, Any]:
    """What is given of the two."""
    return {name: value for name, value in (("queue", queue), ("priority", priority)) if value is not None}


def prune(session: Session, models: Models[Any], *, older_than: timedelta | float) -> int:
    """Delete the jobs that ended so long ago, with their runs; returns how many.

    What somebody holds locked, and what rows of the application refer to, stays. Runs that ended so long ago, and
    whose job somebody else deleted, go too.
    """
    seconds, removal = check_seconds("older_than", older_than, error=ConfigurationError), Removal(models)
    references = removal.references(session)

    @contextmanager
    def part() -> Generator[Session]:
        with savepoint(session, models.Job):
            yield session

    def gone(old: Old) -> int:
        return sum(count for count, _ in pruned(old, part, partial(warn, "delete", old.name)))

    jobs = sum(gone(EndedJobs(removal, state, seconds, references)) for state in ENDED)
    gone(OrphanedRuns(Leftovers(models), seconds))
    return jobs


def id_of(session: Session, job: JobMixin | int) -> int:
    """The id of a job, which is flushed if it has none yet. Raises `ArgumentsError` for what is no job."""
    if isinstance(job, int):
        return job
    if not isinstance(job, JobMixin):
        raise ArgumentsError(f"{job!r:.60} is neither a job nor the id of one, an integer")
    if instance_state(job).pending:
        session.flush()
    return job.id


def _change(session: Session, models: Models[Any], job: JobMixin | int, when: Any, values: dict[str, Any]) -> Any:
    """Returns the id of the job and what it is ordered by, or None if it is not as `when` says."""
    job_id = id_of(session, job)
    table = models.Job
    statement = update(table).where(table.id == job_id, when).values(values).returning(table.id, table.ordered_by)
    changed = session.execute(statement, execution_options={"synchronize_session": False}).one_or_none()
    if changed is None and session.scalar(select(table.id).where(table.id == job_id)) is None:
        raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
    known = session.identity_map.get(session.identity_key(table, job_id))
    if known is not None:
        session.refresh(known, [*values])
    return changed
