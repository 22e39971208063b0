"""Sentences about the jobs and batches that a blocked job waits for, and findings about jobs that stay blocked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import and_, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.batches import count_all
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import ENDED, LIVE, IfFailed, JobState
from sqla_jobs.monitoring.finding import Finding, ask, warning
from sqla_jobs.monitoring.steps import read_awaited
from sqla_jobs.queries.batches import CountBatches
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.processes import age_of, is_alive
from sqla_jobs.queries.resolve import DELETED, NOBODY
from sqla_jobs.rules.redaction import is_erased, parse
from sqla_jobs.rules.wording import Count, duration, moment, plural, they_are

_COUNTED = 10_000
"""The maximum number of prerequisites that are counted."""
_BATCHES = 3
"""The maximum number of batches that are named."""
_UNRESOLVED = 60.0
"""Seconds within which a blocked job should be queued once all that it waits for has ended."""
_LOOKED_AT = 10_000
"""The maximum number of blocked jobs that a check reads."""
_CHAIN = 1_000
"""The maximum length of a chain of blocked jobs that is followed."""
_FAILED = (JobState.failed, JobState.cancelled)


def of_blocked(session: Session, jobs: Jobs[Any], row: Any, *, is_free: bool) -> Iterator[str]:
    """Yield sentences about what a blocked job waits for. `row` has the columns of the job.

    `is_free` is false if something else keeps workers from the row.
    """
    watched = _named(session, jobs, row.waits_for)
    if row.if_failed == IfFailed.hold and _stops(row, watched):
        yield _held(row, watched, _lost_batch(session, jobs, row, watched))
        return
    waits = [*_for_jobs(session, jobs, row), *_for_batches(session, jobs, row)]
    soon = ": a worker looks at it again soon, and queues or cancels it" if is_free else ""
    yield from waits or [f"All that it waits for has ended{soon}."]


def of_cancelled(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield why a job was cancelled, if the reason was that a job before it did not succeed."""
    if row.waits_for is None:
        return
    watched = _named(session, jobs, row.waits_for)
    at = f"It was cancelled at {moment(row.finished_at)} because"
    if (lost := _lost_batch(session, jobs, row, watched)) is not None:
        why, remedy = lost, f" `sqla-jobs batch retry {watched.batch_id}` runs these jobs and this one again."
    else:
        why, remedy = _ended_as(row, watched), f" `sqla-jobs retry {row.waits_for}` runs that job and this one again."
    if is_erased(parse(row.args_text)):
        remedy = " Its arguments were erased: enqueue a new job instead."
    yield f"{at} {why}.{'' if row.waits_for == DELETED else remedy}"


def unresolved(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find blocked jobs whose prerequisite ended more than a minute ago: no worker resolves them."""
    some, before = _blocked(jobs), aliased(jobs.Job)
    is_over = or_(
        before.state == JobState.succeeded,
        and_(before.state.in_(_FAILED), some.c.if_failed.is_distinct_from(IfFailed.hold)),
    )
    late: Any = age_of(before.finished_at)
    query = select(func.count(), func.min(some.c.id), func.max(late))
    query = query.select_from(some.join(before, before.id == some.c.waits_for)).where(is_over, late > _UNRESOLVED)
    number, first, seconds = ask(session, jobs, query).one()
    if number:
        yield warning(
            "blocked jobs",
            f"{they_are(number, 'job')} blocked, such as job {first}, although what they wait for ended up to "
            f"{duration(seconds)} ago",
            f"only workers of this version queue such jobs: {_resolver(session, jobs)}",
        )


def held(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find blocked jobs that are held because a job before them failed."""
    some, before = _blocked(jobs), aliased(jobs.Job)
    is_gone = before.id.is_(None) & (some.c.waits_for != NOBODY)
    query = select(func.count(), func.min(some.c.id))
    query = query.select_from(some.outerjoin(before, before.id == some.c.waits_for))
    query = query.where(some.c.if_failed == IfFailed.hold, or_(before.state.in_(_FAILED), is_gone))
    number, first = ask(session, jobs, query).one()
    if number:
        yield warning(
            "held jobs",
            f"{they_are(number, 'job')} held because a job before failed, such as job {first}",
            f"sqla-jobs why {first} names the job that failed: retry that one, or retry the held one to run it without",
        )


def circles(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find blocked jobs that wait for each other: two transactions have each joined the batch that the other awaits."""
    some = _blocked(jobs)
    watched = {one.id: int(one.waits_for) for one in ask(session, jobs, select(some.c.id, some.c.waits_for))}
    seen = set[int]()
    for first in watched:
        path, at = list[int](), first
        while at in watched and at not in seen:
            seen.add(at)
            path.append(at)
            at = watched[at]
        if at in path:
            circle = sorted(path[path.index(at) :])
            yield warning(
                "circle of jobs",
                f"{plural(len(circle), 'blocked job')} wait for each other for ever, since each is in a batch that "
                f"another waits for, such as job {circle[0]} and job {circle[-1]}",
                f"break the circle: sqla-jobs cancel {circle[-1]}",
            )


def _blocked(jobs: Jobs[Any]) -> Any:
    """Return a query for the first blocked jobs, in the order of an index."""
    job = jobs.Job
    blocked = select(job.id, job.waits_for, job.if_failed).where(job.state == "blocked", job.waits_for.is_not(None))
    return blocked.order_by(job.waits_for).limit(_LOOKED_AT).subquery("some")


def _resolver(session: Session, jobs: Jobs[Any]) -> str:
    """Return the remedy if no worker queues blocked jobs."""
    process: Any = jobs.Process
    live = select(func.count()).where(process.kind == "worker", is_alive(process))
    if ask(session, jobs, live).scalar_one():
        return "the log of each worker shows what stops it; `sqla-jobs doctor` shows whether somebody holds the rows"
    return "start one: python -m sqla_jobs.worker MODULE:ATTR"


def _named(session: Session, jobs: Jobs[Any], job_id: int) -> Any:
    """Return the id, the task, the state and the batch of a job, or None."""
    job: Any = jobs.Job
    return ask(session, jobs, select(job.id, job.task, job.state, job.batch_id).where(job.id == job_id)).one_or_none()


def _stops(row: Any, watched: Any) -> bool:
    """Return whether the watched job failed, was cancelled or was deleted."""
    return row.waits_for != NOBODY if watched is None else watched.state in _FAILED


def _lost_batch(session: Session, jobs: Jobs[Any], row: Any, watched: Any) -> str | None:
    """Return how many jobs of the awaited batch failed or were cancelled; None for fewer than two."""
    if watched is None or watched.batch_id is None:
        return None
    edge, batch = jobs.Edge, jobs.Batch
    waited_for = select(batch.id, batch.name).join(edge, edge.batch_id == batch.id)
    found: Any = ask(session, jobs, waited_for.where(edge.job_id == row.id, batch.id == watched.batch_id)).first()
    if found is None:
        return None
    counts = count_all(CountBatches(Tables(jobs.models)), session, [found.id])[found.id]
    if counts.failed + counts.cancelled < 2:
        return None
    ends = ((counts.failed, "failed"), (counts.cancelled, f"{'was' if counts.cancelled == 1 else 'were'} cancelled"))
    how = " and ".join(f"{number:,} {end}" for number, end in ends if number)
    return f"of the jobs in the {titled(found.id, found.name)}, {how}, such as job {watched.id} ({watched.task:.200})"


def _held(row: Any, watched: Any, lost: str | None) -> str:
    if lost is not None:
        return (
            f"It is held: {lost}. `sqla-jobs batch retry {watched.batch_id}` runs these jobs again; "
            f"`sqla-jobs retry {row.id}` runs this one without them."
        )
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
    query = select(job.id, job.task, job.state).join(edge, edge.needs_id == job.id)
    query = query.where(edge.job_id == row.id, is_open).order_by(edge.place)
    first = ask(session, jobs, query.limit(1)).first()
    if first is None:
        return
    number = ask(session, jobs, select(func.count()).select_from(query.limit(_COUNTED + 1).subquery())).scalar_one()
    others = Count(min(number - 1, _COUNTED), is_least=number > _COUNTED)
    more = f", and {'at least ' if others.is_least else ''}{others:,} more" if others else ""
    yield f"It waits for job {first.id} ({first.task:.200}), which is {first.state}{more}."
    if first.state == JobState.blocked and (root := _root(session, jobs, first.id)) is not None:
        yield root


def _root(session: Session, jobs: Jobs[Any], job_id: int) -> str | None:
    """Return a sentence about the first job of the chain before a blocked job; None if the chain is too long."""
    job: Any = jobs.Job
    columns = (job.id, job.task, job.state, job.waits_for, job.if_failed)
    chain = select(*columns, literal(0).label("place")).where(job.id == job_id).cte("chain", recursive=True)
    further = select(*columns, chain.c.place + 1).join(chain, job.id == chain.c.waits_for)
    chain = chain.union_all(further.where(chain.c.state == "blocked", chain.c.place < _CHAIN))
    last: Sequence[Any] = ask(session, jobs, select(chain).order_by(chain.c.place.desc()).limit(2)).all()
    root, after = last[0], last[-1]
    if root.state == JobState.blocked:
        return None
    said = f"The first job of that chain is job {root.id} ({root.task:.200}), which"
    if root.state in _FAILED and after.if_failed == IfFailed.hold:
        return f"{said} {_how(root)} and holds job {after.id}: `sqla-jobs why {after.id}` says more."
    if (signal := read_awaited(session, jobs, root.id)) is not None:
        return f"{said} waits for the signal {signal!r:.200}."
    return f"{said} {'is ' if root.state in LIVE else ''}{root.state}: `sqla-jobs why {root.id}` says more."


def _for_batches(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    edge, batch, job = jobs.Edge, jobs.Batch, jobs.Job
    live = select(literal(1)).where(job.batch_id == batch.id, job.state.not_in(ENDED))
    query = select(batch.id, batch.name).join(edge, edge.batch_id == batch.id).where(edge.job_id == row.id)
    query = query.where(live.exists()).order_by(edge.place)
    found: Sequence[Any] = ask(session, jobs, query.limit(_BATCHES + 1)).all()
    counts = count_all(CountBatches(Tables(jobs.models)), session, [one.id for one in found])
    for one in found[:_BATCHES]:
        ended, total = counts[one.id].ended, counts[one.id].total
        yield f"It waits for the {titled(one.id, one.name)}: {ended:,} of {total:,} have ended."
    if len(found) > _BATCHES:
        yield "It waits for more batches."


def titled(batch_id: int, name: str) -> str:
    """Return a batch's name for people: `batch 'import 17'`; its id if it has no name."""
    return f"batch {name!r:.210}" if name else f"batch {batch_id}"
