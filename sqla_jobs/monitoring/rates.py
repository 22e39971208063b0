"""Findings about rate limits that failing attempts use up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.check import Check, Look, Rows
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.queries import Queries
from sqla_jobs.rules.limits import titled
from sqla_jobs.rules.wording import Count, plural

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


def read_eaten(session: Session, jobs: Jobs[Any], gate: str, since: datetime) -> Eaten | None:
    """Return the failed attempts that have started behind a gate since then, of the task that has the most.

    Return None if there are none.
    """
    job: Any = jobs.Job
    run = jobs.Run
    failed = run.outcome.in_(sa.text("'failed', 'retried', 'lost'"))  # written like the index's predicate
    last = sa.select(run.job_id, run.started_at).where(failed, run.finished_at > since)
    some = last.order_by(run.finished_at.desc()).limit(_READ).subquery("some")
    number = sa.func.count()
    counted = (
        sa.select(job.task, number, sa.func.count(job.id.distinct()), sa.func.max(job.id))
        .join(some, some.c.job_id == job.id)
        .where(some.c.started_at > since, job.gates.contains([gate]))
        .group_by(job.task)
        .order_by(number.desc())
        .limit(1)
    )
    row = ask(session, jobs, counted).one_or_none()
    return None if row is None else Eaten(*row)


def _eaten_rates(look: Look) -> Rows:
    """Find exhausted rates for which failing attempts used more than half of the starts."""
    queries = Queries(look.jobs._models)
    waiting, least = Counter[str](), set[str]()
    for group in queries.waiting_groups(look.session):
        for gate in group.gates:
            waiting[gate] += group.waiting * gate.startswith("%")
            least |= {gate} if group.is_least else set()
    for state in queries.gate_statuses(look.session, [gate for gate, _ in (+waiting).most_common(_SOME)]):
        if not state.is_full or not state.most or state.since is None:
            continue
        eaten = read_eaten(look.session, look.jobs, state.gate, state.since)
        if eaten is not None and 2 * eaten.failed > state.used:
            number = Count(waiting[state.gate], is_least=state.gate in least)
            one = eaten.job_id if eaten.jobs == 1 else None
            yield {"title": titled(state.gate), "state": state, "eaten": eaten, "number": number, "one": one}


RATES = (
    Check(
        name="limits that let nothing start",
        about="{title}",
        rows=_eaten_rates,
        says="{state.used:,} of at most {state.most:plural start} in {state.per:duration} are taken; {eaten}, and "
        "{number:they_are job} waiting behind it",
        remedy="until the cause is fixed: sqla-jobs pause --task {eaten.task:.200}"
        "{one:|; or cancel that job: sqla-jobs cancel }. `sqla-jobs status` shows the errors",
    ),
)
