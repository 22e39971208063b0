"""Erasing what jobs that ended, and their runs, hold of people, while the rows stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, any_, bindparam, func, null, select, update
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED
from sqla_jobs.queries.delete_jobs import ctid
from sqla_jobs.queries.expressions import array_of, locked
from sqla_jobs.rules.redaction import ERASED


def erase(session: Session, models: Models[Any], ids: Sequence[int], conditions: Sequence[ColumnElement[bool]]) -> int:
    """Erase those of the jobs, with their runs, that have ended and meet the conditions. Returns how many they were.

    Left alone are those that are locked, or were changed since the statement began. Arguments that are no object keep
    a job from being queued again.
    """
    job, jobs, runs = models.Job, models.tables["jobs"], models.tables["runs"]
    named = job.id == any_(bindparam("ids", type_=ARRAY(BigInteger)))
    wanted = select(ctid.label("ctid")).select_from(job).where(named, job.state.in_(ENDED), *conditions)
    free = locked(wanted, "free", of=job)
    nothing = {"unique_key": null(), "progress_message": null(), "headers": null()}
    erased = (
        update(jobs)
        .where(ctid == any_(array_of(select(free.c.ctid))))
        .values(args=ERASED, **nothing)
        .returning(jobs.c.id)
        .cte("erased")
    )
    of_runs = (
        update(runs)
        .where(runs.c.job_id.in_(select(erased.c.id)))
        .values(result=null(), error=null(), traceback=null())
        .cte("of_runs")
    )
    statement = select(func.count()).select_from(erased).add_cte(of_runs)
    return session.scalar(statement, {"ids": list(ids)}, bind_arguments={"mapper": job}) or 0
