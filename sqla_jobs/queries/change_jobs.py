"""Statements for changes that a person makes to jobs: they lock jobs, update them, and erase their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, JobState
from sqla_jobs.queries.delete_jobs import ctid
from sqla_jobs.queries.erasing import erased_job, erased_with
from sqla_jobs.queries.expressions import array_of, locked

IDS: Any = sa.bindparam("all_ids", type_=sa.ARRAY(sa.BigInteger))
"""The ids of the jobs to change, oldest first."""
_HERE = {"synchronize_session": False}


def place(models: Models[Any]) -> sa.ColumnElement[int]:
    """Return the place of a job in `IDS`, from 1.

    `width_bucket` searches the sorted ids by halves, where `array_position` would read them all for each job.
    """
    return sa.func.width_bucket(models.Job.id, IDS, type_=sa.Integer)


def new_position(models: Models[Any]) -> sa.ColumnElement[int]:
    """Return a new position for each job in `IDS`, in this order. An UPDATE changes rows in an order of its own."""
    numbers = sa.func.generate_series(1, sa.func.cardinality(IDS))
    taken: Any = sa.func.array_agg(models.positions.next_value(), type_=sa.ARRAY(sa.BigInteger))
    return sa.select(taken).select_from(numbers).scalar_subquery()[place(models)]


class Held(NamedTuple):
    """A job that the caller's transaction has locked."""

    task: str
    state: JobState


def hold(session: Session, models: Models[Any], job_id: int) -> Held | None:
    """Lock a job until the caller's transaction ends. Return None if there is no such job."""
    job = models.Job
    row = session.execute(
        sa.select(job.task, job.state).where(job.id == job_id).with_for_update(key_share=True)
    ).first()
    return None if row is None else Held(*row)


def hold_all(
    session: Session, models: Models[Any], conditions: Sequence[sa.ColumnElement[bool]], *, skip_locked: bool = False
) -> list[int]:
    """Lock the jobs that meet the conditions until the caller's transaction ends. Return the ids, oldest first."""
    wanted = sa.select(models.Job.id).where(*conditions).order_by(models.Job.id)
    return [*session.scalars(wanted.with_for_update(key_share=True, skip_locked=skip_locked))]


def update_jobs(
    session: Session,
    models: Models[Any],
    ids: Sequence[int],
    conditions: Sequence[sa.ColumnElement[bool]],
    values: Mapping[str, Any],
) -> Sequence[int]:
    """Update the jobs in `ids` that meet the conditions.

    Return the ids of the updated jobs. Jobs that are locked, or have been changed since the statement began, are
    skipped.
    """
    job = models.Job
    statement = sa.update(job).where(_free(job, conditions)).values(values).returning(job.id)
    return session.scalars(statement, {"all_ids": sorted(ids)}, execution_options=_HERE).all()


def erase(
    session: Session, models: Models[Any], ids: Sequence[int], conditions: Sequence[sa.ColumnElement[bool]]
) -> Sequence[int]:
    """Erase the arguments, results and errors of the jobs in `ids` that have ended and meet the conditions.

    Return the ids of the erased jobs. Locked or changed jobs are skipped, as in `update_jobs`.
    """
    job, jobs = models.Job, models.tables["jobs"]
    erased = (
        sa.update(jobs)
        .where(_free(job, [job.state.in_(ENDED), *conditions]))
        .values(erased_job())
        .returning(jobs.c.id)
        .cte("erased")
    )
    statement = sa.select(erased.c.id).add_cte(*erased_with(models.tables, erased))
    return session.scalars(statement, {"all_ids": list(ids)}, bind_arguments={"mapper": job}).all()


def _free(job: Any, conditions: Sequence[sa.ColumnElement[bool]]) -> sa.ColumnElement[bool]:
    """Return the condition that a job is among `IDS`, is not locked, and meets the conditions."""
    wanted = sa.select(ctid.label("ctid")).select_from(job).where(job.id == sa.any_(IDS), *conditions)
    return ctid == sa.any_(array_of(sa.select(locked(wanted, "free", of=job).c.ctid)))
