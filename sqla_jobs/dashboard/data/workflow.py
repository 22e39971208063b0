"""The workflow around a job: the jobs next to it, and all jobs and batches that edges connect with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.batches import BatchStatus, read_statuses
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.queries.graphs import connected

LISTED = 20
"""The maximum number of jobs in a list."""
READ = 200
"""The maximum number of jobs and batches of a workflow on a page: those nearest to the job."""
_EDGES = 20_000
"""The maximum number of edges that a page reads."""


@dataclass(frozen=True, slots=True)
class Near:
    """The first jobs next to a job."""

    jobs: Sequence[Any]
    """Rows with `id`, `task` and `state`."""
    batches: Sequence[BatchStatus]
    has_more: bool

    @property
    def is_empty(self) -> bool:
        return not self.jobs and not self.batches


@dataclass(frozen=True, slots=True)
class Workflow:
    """Jobs, batches and the edges between them. A batch comes after its jobs."""

    jobs: Sequence[Any]
    """Rows with `id`, `task`, `state` and `batch_id`, ordered by id."""
    batches: Sequence[BatchStatus]
    edges: Sequence[tuple[str, str]]
    """Pairs of keys, such as `j17` and `b3`; the first one comes before the second one."""
    is_whole: bool
    """False if there are more jobs than a page reads."""


def read_after(session: Session, jobs: Jobs[Any], job_id: int) -> Near:
    """Return the jobs and batches that a job was enqueued after."""
    job, edge = jobs.Job, jobs.Edge
    near = sa.select(job.id, job.task, job.state).join(edge, edge.needs_id == job.id).where(edge.job_id == job_id)
    batches = sa.select(edge.batch_id).where(edge.job_id == job_id, edge.batch_id.is_not(None)).order_by(edge.place)
    ids = [*ask(session, jobs, batches.limit(LISTED)).scalars()]
    return _near(session, jobs, near.order_by(edge.place), read_statuses(session, jobs, ids))


def read_before(session: Session, jobs: Jobs[Any], job_id: int, batch_id: int | None) -> Near:
    """Return the jobs that were enqueued after a job, or after its batch."""
    edge = jobs.Edge
    follows = (
        edge.needs_id == job_id if batch_id is None else sa.or_(edge.needs_id == job_id, edge.batch_id == batch_id)
    )
    return after_edges(session, jobs, follows)


def after_edges(session: Session, jobs: Jobs[Any], which: Any) -> Near:
    """Return the jobs that have an edge which meets the condition `which`."""
    job, edge = jobs.Job, jobs.Edge
    ids = sa.select(edge.job_id).where(which)
    return _near(session, jobs, sa.select(job.id, job.task, job.state).where(job.id.in_(ids)).order_by(job.id), [])


def _near(session: Session, jobs: Jobs[Any], query: Any, batches: Sequence[BatchStatus]) -> Near:
    rows = ask(session, jobs, query.limit(LISTED + 1)).all()
    return Near(rows[:LISTED], batches, len(rows) > LISTED)


def read_workflow(session: Session, jobs: Jobs[Any], job_id: int) -> Workflow:
    """Return the jobs and batches that edges connect with a job, at most `READ` of them, and the edges."""
    rows: list[Any] = ask(session, jobs, connected(jobs._models), job_id=job_id, most=READ + 1).all()
    job_ids = sorted({row.job_id for row in rows if row.job_id is not None} | {job_id})
    batch_ids = sorted({row.batch_id for row in rows if row.batch_id is not None})
    job = jobs.Job
    found = sa.select(job.id, job.task, job.state, job.batch_id).where(job.id.in_(job_ids)).order_by(job.id)
    nodes: Sequence[Any] = ask(session, jobs, found).all()
    known = {f"j{row.id}" for row in nodes} | {f"b{batch_id}" for batch_id in batch_ids}
    members = [(f"j{row.id}", f"b{row.batch_id}") for row in nodes if row.batch_id in batch_ids]
    edges = [pair for pair in [*_edges(session, jobs, job_ids), *members] if known.issuperset(pair)]
    return Workflow(nodes, read_statuses(session, jobs, batch_ids), edges, is_whole=len(rows) <= READ)


def _edges(session: Session, jobs: Jobs[Any], job_ids: Collection[int]) -> list[tuple[str, str]]:
    edge = jobs.Edge
    rows = sa.select(edge.needs_id, edge.batch_id, edge.job_id).where(edge.job_id.in_(job_ids))
    return [
        (f"b{row.batch_id}" if row.needs_id is None else f"j{row.needs_id}", f"j{row.job_id}")
        for row in ask(session, jobs, rows.order_by(edge.job_id, edge.place).limit(_EDGES))
    ]
