"""What follows when a job loses its process, derived from the job's runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, and_, case, func, literal_column, select

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import NOT_RUNNING
from sqla_jobs.queries.expressions import Tables, is_of_job

_NOT_RUNNING = [literal_column(f"'{state}'", Text) for state in NOT_RUNNING]


def losses(tables: Tables) -> Any:
    """Return the number of times that the job has lost its process."""
    runs = tables.runs
    return (
        select(func.count())
        .where(runs.c.job_id == tables.jobs.c.id, runs.c.outcome == "lost", is_of_job(runs, tables.jobs))
        .correlate(tables.jobs)
        .scalar_subquery()
    )


def losses_in_a_row(jobs: Any, runs: Any) -> Any:
    """Return the number of lost runs of the job since its last other outcome, and since it was last retried by hand.

    `jobs` and `runs` are tables. A job that goes on after a loss has got the attempt back, so its next run has the same
    number. A retry by hand goes on to the next number, so the losses before it do not count.
    """
    other = runs.alias("other")
    # + 0: without it the planner may walk the index of ids backwards, past the runs of all other jobs
    last = select(func.max(other.c.id + 0)).where(other.c.job_id == jobs.c.id, other.c.outcome != "lost")
    since = func.coalesce(last.correlate(jobs).scalar_subquery(), 0)
    waits = case((jobs.c.state.in_(_NOT_RUNNING), 1), else_=0)
    return (
        select(func.count())
        .where(runs.c.job_id == jobs.c.id, runs.c.outcome == "lost", is_of_job(runs, jobs))
        .where(runs.c.id > since, runs.c.attempt >= jobs.c.attempt + waits)
        .correlate(jobs)
        .scalar_subquery()
    )


def loss_backoff(tables: Tables) -> ColumnElement[Any]:
    """Return the wait in seconds after the third loss and each later one. The wait grows like `retry.BACKOFF`."""
    return func.least(func.power(2.0, func.least(losses(tables) - 1, 20)), 3600.0) * (0.75 + func.random() / 2)


def state_after_loss(tables: Tables) -> ColumnElement[str]:
    """Return the next state of a job that has lost its process. A cancel request rules out another attempt.

    The runs since the last other outcome are read only for a job that counts its losses apart.
    """
    jobs = tables.jobs
    is_last = case(
        (jobs.c.max_lost.is_(None), jobs.c.attempt >= jobs.c.max_attempts),
        else_=losses_in_a_row(jobs, tables.runs) + 1 >= jobs.c.max_lost,
    )
    return case(
        (jobs.c.cancel_requested_at.is_not(None), "cancelled"),
        (is_last, "failed"),
        (losses(tables) < 2, "queued"),
        else_="scheduled",
    )


def lost_in_a_row(models: Models[Any]) -> Any:
    """Return `losses_in_a_row` for a query of the mapped class."""
    return losses_in_a_row(models.Job.__table__, models.Run.__table__)


def gets_attempt_back(jobs: Any, state: Any) -> ColumnElement[bool]:
    """Return the condition that a lost job, whose next state is `state`, gets its attempt back.

    A job that ends keeps it. So if it is retried by hand, its next run has another number, and its losses count anew.
    """
    goes_on = state.in_(_NOT_RUNNING)
    return and_(jobs.c.max_lost.is_not(None), goes_on)
