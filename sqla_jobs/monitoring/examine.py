"""The findings of `doctor`, `status` and the dashboard: causes of slow or stuck queues, with remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring import additions, blocked, limits, locks, prerequisites, rates, server, waiting_jobs
from sqla_jobs.monitoring.finding import Finding, Verdict
from sqla_jobs.monitoring.processes import ProcessStatus
from sqla_jobs.monitoring.queues import read_work
from sqla_jobs.runtime.figures import QueueStatus

_LOOKS: tuple[Callable[[Session, Jobs[Any]], Iterator[Finding]], ...] = (
    server.pooler,
    server.version,
    server.settings,
    server.idle_transactions,
    server.connections,
    server.clock_of_this_host,
    server.oldest_transaction,
    server.prepared_transactions,
    server.bloat,
    waiting_jobs.vanished_processes,
    waiting_jobs.overdue_jobs,
    locks.locked_jobs,
    locks.held_jobs,
    waiting_jobs.set_aside,
    waiting_jobs.parked_keys,
    prerequisites.circles,
    limits.out_of_order,
    additions.foreign_keys,
    additions.kept_jobs,
    additions.row_level_security,
    additions.triggers,
)


def examine(session: Session, jobs: Jobs[Any]) -> list[Finding]:
    """Return all findings of `sqla-jobs doctor`. Writes nothing and needs only the application's own privileges."""
    found = [finding for look in _LOOKS for finding in look(session, jobs)]
    queues, processes = read_work(session, jobs)
    return [*found, *_of_work(session, jobs, queues, processes)]


def problems(
    session: Session, jobs: Jobs[Any], queues: Sequence[QueueStatus], processes: Sequence[ProcessStatus]
) -> list[Finding]:
    """Return the findings about work and the oldest transaction. These are cheap enough to read every few seconds."""
    found = [*_of_work(session, jobs, queues, processes), *server.oldest_transaction(session, jobs)]
    return [finding for finding in found if finding.verdict is not Verdict.ok]


def _of_work(
    session: Session, jobs: Jobs[Any], queues: Sequence[QueueStatus], processes: Sequence[ProcessStatus]
) -> Iterator[Finding]:
    yield from waiting_jobs.workers(queues, processes)
    yield from waiting_jobs.stalled_processes(processes)
    yield from blocked.blocked_jobs(session, jobs)
    yield from waiting_jobs.unclaimed_tasks(session, jobs, queues)
    yield from waiting_jobs.misfits(session, jobs)
    yield from prerequisites.unresolved(session, jobs)
    yield from prerequisites.held(session, jobs)
    yield from waiting_jobs.clocks(session, jobs, processes)
    yield from waiting_jobs.undeclared_schedules(session, jobs)
    yield from waiting_jobs.event_loops(session, jobs)
    yield from waiting_jobs.put_off(session, jobs)
    yield from waiting_jobs.swallowing_keys(session, jobs)
    yield from waiting_jobs.killers(session, jobs)
    yield from waiting_jobs.unheard_cancels(session, jobs)
    yield from limits.closed_limits(session, jobs)
    yield from limits.held_keys(session, jobs)
    yield from limits.split_limits(session, jobs)
    yield from rates.eaten_rates(session, jobs)
