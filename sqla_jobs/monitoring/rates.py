"""Findings about rate limits that failing attempts use up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import Finding, ask, warning
from sqla_jobs.queries import Queries
from sqla_jobs.rules.limits import titled
from sqla_jobs.rules.wording import Count, duration, plural, they_are

_SOME = 20
"""The maximum number of rates examined: those with the most waiting jobs."""
_READ = 20_000
"""The maximum number of failed attempts examined, the newest first."""


@dataclass(frozen=True, slots=True)
class Eaten:
    """Failed attempts among the starts that a rate has counted: those of the task that has the most."""

    task: str
    failed: int
    jobs: int
    """The number of jobs to which these attempts belong."""
    job_id: int
    """The newest of these jobs."""

    def __str__(self) -> str:
        of = f"job {self.job_id}" if self.jobs == 1 else plural(self.jobs, "job")
        return f"{self.failed:,} of these starts failed: {of} of {self.task[:200]}"


def read_eaten(session: Session, jobs: Jobs[Any], gate: str, per: float) -> Eaten | None:
    """Return the failed attempts behind a gate in the last `per` seconds, of the task that has the most.

    Return None if there are none.
    """
    job: Any = jobs.Job
    run = jobs.Run
    failed = run.outcome.in_(text("'failed', 'retried', 'lost'"))  # written like the index's predicate
    since = func.clock_timestamp() - timedelta(seconds=per)
    last = select(run.job_id, run.started_at).where(failed, run.finished_at > since)
    some = last.order_by(run.finished_at.desc()).limit(_READ).subquery("some")
    number = func.count()
    counted = (
        select(job.task, number, func.count(job.id.distinct()), func.max(job.id))
        .join(some, some.c.job_id == job.id)
        .where(some.c.started_at > since, job.gates.contains([gate]))
        .group_by(job.task)
        .order_by(number.desc())
        .limit(1)
    )
    row = ask(session, jobs, counted).one_or_none()
    return None if row is None else Eaten(*row)


def eaten_rates(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find exhausted rates for which failing attempts used more than half of the starts."""
    queries = Queries(jobs.models)
    waiting = Counter[str]()
    least = set[str]()
    for group in queries.waiting_groups(session):
        for gate in group.gates:
            if gate.startswith("%"):
                waiting[gate] += group.waiting
                least |= {gate} if group.is_least else set()
    longest = [gate for gate, _ in waiting.most_common(_SOME)]
    for state in queries.gate_statuses(session, longest):
        if not state.is_full or not state.most or state.per is None:
            continue
        eaten = read_eaten(session, jobs, state.gate, state.per)
        if eaten is not None and 2 * eaten.failed > state.used:
            number = Count(waiting[state.gate], is_least=state.gate in least)
            stop = f"sqla-jobs pause --task {eaten.task[:200]}"
            if eaten.jobs == 1:
                stop += f"; or cancel that job: sqla-jobs cancel {eaten.job_id}"
            yield warning(
                titled(state.gate),
                f"{state.used:,} of at most {plural(state.most, 'start')} in {duration(state.per)} are taken; {eaten}, "
                f"and {they_are(number, 'job')} waiting behind it",
                f"until the cause is fixed: {stop}. `sqla-jobs status` shows the errors",
            )
