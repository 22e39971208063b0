"""Sentences about the jobs and batches that a blocked job waits for, and findings about jobs that stay blocked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.actions.batches import count_all
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import ENDED, IfFailed, JobState
from sqla_jobs.monitoring.check import Check, Look, Rows
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.queries.batches import CountBatches
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.resolve import DELETED, NOBODY
from sqla_jobs.rules.redaction import is_erased, parse
from sqla_jobs.rules.wording import Count, moment

_COUNTED = 10_000
"""The maximum number of prerequisites that are counted."""
_BATCHES = 3
"""The maximum number of batches that are named."""
_LOOKED_AT = 10_000
"""The maximum number of blocked jobs that a check reads."""
_FAILED = (JobState.failed, JobState.cancelled)


def of_blocked(session: Session, jobs: Jobs[Any], row: Any, *, is_free: bool) -> Iterator[str]:
    """Yield sentences about what a blocked job waits for. `row` has the columns of the job.

    `is_free` is false if something else keeps workers from the row.
    """
    watched = _named(session, jobs, row.waits_for)
    if row.if_failed == IfFailed.hold and _stops(row, watched):
        yield _held(row, watched)
        return
    waits = [*_for_jobs(session, jobs, row), *_for_batches(session, jobs, row)]
    soon = ": a worker looks at it again soon, and queues or cancels it" if is_free else ""
    yield from waits or [f"All that it waits for has ended{soon}."]


def of_cancelled(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield why a job was cancelled, if the reason was that a job before it did not succeed."""
    if row.waits_for is None:
        return
    watched = _named(session, jobs, row.waits_for)
    remedy = f" `sqla-jobs retry {row.waits_for}` runs that job and this one again."
    if is_erased(parse(row.args_text)):
        remedy = " Its arguments were erased: enqueue a new job instead."
    why = f"It was cancelled at {moment(row.finished_at)} because {_ended_as(row, watched)}."
    yield why if row.waits_for == DELETED else why + remedy


_FIRST_BLOCKED = f"""(
      SELECT id, waits_for, if_failed FROM $jobs
      WHERE state = 'blocked' AND waits_for IS NOT NULL ORDER BY waits_for LIMIT {_LOOKED_AT})"""
"""The first blocked jobs, in the order of an index."""


def _circles(look: Look) -> Rows:
    """Find blocked jobs that wait for each other: two transactions have each joined the batch that the other awaits."""
    watched = {row["id"]: int(row["waits_for"]) for row in look.rows(f"SELECT * FROM {_FIRST_BLOCKED} AS first")}
    seen = set[int]()
    for first in watched:
        path, at = list[int](), first
        while at in watched and at not in seen:
            seen.add(at)
            path.append(at)
            at = watched[at]
        if at in path:
            circle = sorted(path[path.index(at) :])
            yield {"number": len(circle), "first": circle[0], "last": circle[-1]}


PREREQUISITES = (
    Check(
        name="blocked jobs",
        rows=f"""
            SELECT number, id, age,
              CASE WHEN EXISTS (SELECT FROM $processes AS process WHERE kind = 'worker' AND $alive(process))
                THEN 'the log of each worker shows what stops it, and `sqla-jobs doctor` who holds the rows'
                ELSE 'start one: python -m sqla_jobs.worker MODULE:ATTR' END AS remedy
            FROM (
              SELECT count(*) AS number, min(first.id) AS id, max($age(before.finished_at)) AS age
              FROM {_FIRST_BLOCKED} AS first JOIN $jobs AS before ON before.id = first.waits_for
              WHERE $age(before.finished_at) > :unresolved AND (before.state = 'succeeded'
                OR before.state IN ('failed', 'cancelled') AND first.if_failed IS DISTINCT FROM '{IfFailed.hold}')
            ) AS late WHERE number > 0""",
        says="{number:they_are job} blocked, such as job {id}, although what they wait for ended up to "
        "{age:duration} ago",
        remedy="only workers of this version queue such jobs: {remedy}",
    ),
    Check(
        name="held jobs",
        rows=f"""
            SELECT * FROM (
              SELECT count(*) AS number, min(first.id) AS id
              FROM {_FIRST_BLOCKED} AS first LEFT JOIN $jobs AS before ON before.id = first.waits_for
              WHERE first.if_failed = '{IfFailed.hold}' AND (before.state IN ('failed', 'cancelled')
                OR before.id IS NULL AND first.waits_for <> {NOBODY})
            ) AS held WHERE number > 0""",
        says="{number:they_are job} held because a job before failed, such as job {id}",
        remedy="sqla-jobs show {id} names the job that failed: retry that one, or retry the held one to run it without",
    ),
    Check(
        name="blocked jobs",
        about="circle of jobs",
        rows=_circles,
        says="{number:plural blocked job} wait for each other for ever, since each is in a batch that another waits "
        "for, such as job {first} and job {last}",
        remedy="break the circle: sqla-jobs cancel {last}",
        is_cheap=False,
    ),
)


def _named(session: Session, jobs: Jobs[Any], job_id: int) -> Any:
    """Return the id, the task and the state of a job, or None."""
    job: Any = jobs.Job
    return ask(session, jobs, sa.select(job.id, job.task, job.state).where(job.id == job_id)).one_or_none()


def _stops(row: Any, watched: Any) -> bool:
    """Return whether the watched job failed, was cancelled or was deleted."""
    return row.waits_for != NOBODY if watched is None else watched.state in _FAILED


def _held(row: Any, watched: Any) -> str:
    said = f"It is held: {_ended_as(row, watched)}."
    alone = f"`sqla-jobs retry {row.id}` runs this one without it"
    if watched is None:
        return f"{said} {alone}, `sqla-jobs cancel {row.id}` cancels it."
    return f"{said} `sqla-jobs retry {watched.id}` runs that job again; {alone}."


def _ended_as(row: Any, watched: Any) -> str:
    if watched is None:
        return "a job before it was deleted" if row.waits_for == DELETED else f"job {row.waits_for} was deleted"
    return f"job {watched.id} ({watched.task:.200}) {_how(watched)}"


def _how(job: Any) -> str:
    return "was cancelled" if job.state == JobState.cancelled else "failed"


def _for_jobs(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    edge, job = jobs.Edge, jobs.Job
    is_open = job.state.not_in(ENDED)
    query = sa.select(job.id, job.task, job.state).join(edge, edge.needs_id == job.id)
    query = query.where(edge.job_id == row.id, is_open).order_by(edge.place)
    first = ask(session, jobs, query.limit(1)).first()
    if first is None:
        return
    number = ask(
        session, jobs, sa.select(sa.func.count()).select_from(query.limit(_COUNTED + 1).subquery())
    ).scalar_one()
    others = Count(min(number - 1, _COUNTED), is_least=number > _COUNTED)
    more = f", and {others.in_words} more" if others else ""
    what = "" if first.state != JobState.blocked else f": `sqla-jobs show {first.id}` says what that one waits for"
    yield f"It waits for job {first.id} ({first.task:.200}), which is {first.state}{more}{what}."


def _for_batches(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    edge, batch, job = jobs.Edge, jobs.Batch, jobs.Job
    live = sa.select(sa.literal(1)).where(job.batch_id == batch.id, job.state.not_in(ENDED))
    query = sa.select(batch.id, batch.name).join(edge, edge.batch_id == batch.id).where(edge.job_id == row.id)
    query = query.where(live.exists()).order_by(edge.place)
    found: Sequence[Any] = ask(session, jobs, query.limit(_BATCHES + 1)).all()
    counts = count_all(CountBatches(Tables(jobs._models)), session, [one.id for one in found])
    for one in found[:_BATCHES]:
        ended, total = counts[one.id].ended, counts[one.id].total
        yield f"It waits for the {titled(one.id, one.name)}: {ended:,} of {total:,} have ended."
    if len(found) > _BATCHES:
        yield "It waits for more batches."


def titled(batch_id: int, name: str) -> str:
    """Return a batch's name for people: `batch 'import 17'`; its id if it has no name."""
    return f"batch {name!r:.210}" if name else f"batch {batch_id}"
