"""The status of limits, and findings about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.check import Check, Look, Rows
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.queues import COUNTED
from sqla_jobs.queries import Queries
from sqla_jobs.queries.limit_status import WaitingGroup
from sqla_jobs.queries.processes import age_of
from sqla_jobs.queries.restrictions import is_in_effect
from sqla_jobs.rules.limits import (
    HASHED_BY,
    SPLIT_REMEDY,
    described,
    named_on_command_line,
    split_between,
    titled,
)
from sqla_jobs.rules.wording import Count, plural
from sqla_jobs.runtime.metrics import LimitStatus

EACH = "each"
"""Shown as the key of a row that applies to each key without its own row. It is no real key: text keys have quotes."""
KINDS = {"#": "concurrency", "!": "ordered", "%": "rate", "@": "queue"}
"""The kind of limit, by the first character of its limit keys."""


def read_limits(session: Session, jobs: Jobs[Any], *which: sa.ColumnElement[bool]) -> list[LimitStatus]:
    """Return the limits in effect that meet the conditions, sorted by name, with those of queues last.

    A limit on all keys comes before limits on one key.
    """
    limit: Any = jobs.Limit
    in_effect = sa.select(*limit.__table__.c).where(is_in_effect(limit), *which).order_by(limit.gate)
    rows: list[Any] = list(ask(session, jobs, in_effect))
    if not rows:
        return []
    rows.sort(key=lambda row: (row.gate[0] == "@", row.gate[1:], row.gate))
    queries = Queries(jobs._models)
    gates = {row.gate for row in rows}
    states = {state.gate: state for state in queries.gate_statuses(session, sorted(gates - set(_of_each(gates))))}
    used = queries.keys_in_use(session, [gate for gate in _of_each(gates) if not gate.startswith("%")])
    waiting = _waiting(session, jobs, gates, queries.waiting_groups(session))
    setters = read_setters(session, jobs, {row.gate: row.set_at for row in rows})
    return [
        LimitStatus(
            row.gate,
            *_named(row.gate),
            row.tasks,
            row.running,
            row.rate,
            row.per,
            row.hold,
            row.declared,
            row.set_at,
            setters[row.gate][0] if row.gate in setters else None,
            setters[row.gate][1] if row.gate in setters else None,
            row.changed_at,
            used.get(row.gate) if (state := states.get(row.gate)) is None else state.used,
            waiting[row.gate],
            None if state is None else state.next_at,
        )
        for row in rows
    ]


def read_setters(
    session: Session, jobs: Jobs[Any], set_at: Mapping[str, datetime | None]
) -> dict[str, tuple[str, str | None]]:
    """For each of these limits, return the actor who overrode it at the given time, and the reason.

    Limits for which the audit log has no entry are left out.
    """
    moments = {titled(gate): (gate, at) for gate, at in set_at.items() if at is not None}
    line = jobs.Audit
    last = (
        sa.select(sa.func.max(line.id)).where(line.action == "set", line.subject.in_([*moments])).group_by(line.subject)
    )
    columns = (line.subject, line.at, line.actor, line.details["reason"].astext)
    lines = ask(session, jobs, sa.select(*columns).where(line.id.in_(last))) if moments else ()
    found = [(*moments[subject], at, actor, reason) for subject, at, actor, reason in lines]
    return {gate: (actor, reason) for gate, since, at, actor, reason in found if at >= since}


def _of_each(gates: Collection[str]) -> list[str]:
    return sorted(gate for gate in gates if gate.endswith("=") and not gate.startswith("@"))


def _named(gate: str) -> tuple[str, str, str | None]:
    """Split a gate into name, kind and key."""
    kind = KINDS.get(gate[0], gate[0])
    if gate.startswith("@"):
        return gate[1:], kind, None
    name, keyed, key = gate[1:].partition("=")
    return name, kind, (key or EACH) if keyed else None


def _waiting(
    session: Session, jobs: Jobs[Any], gates: Collection[str], groups: Collection[WaitingGroup]
) -> dict[str, Count]:
    """Count the jobs that are waiting behind each row's limit."""
    numbers, least = dict.fromkeys(gates, 0), set[str]()
    for group in groups:
        for row in _rows_of(group.gates) & numbers.keys():
            numbers[row] += group.waiting
            if group.is_least:
                least.add(row)
    found = {row: Count(number, is_least=row in least) for row, number in numbers.items()}
    return found | {gate: _queued(session, jobs, gate[1:]) for gate in gates if gate.startswith("@")}


def _rows_of(gates: Collection[str]) -> set[str]:
    """Return the rows that can limit a job with these gates: the rows of its keys, and the rows for every key."""
    return {*gates, *(gate[: gate.index("=") + 1] for gate in gates if "=" in gate)}


def _queued(session: Session, jobs: Jobs[Any], queue: str) -> Count:
    job: Any = jobs.Job
    some = sa.select(sa.literal(1)).where(job.state == "queued", job.queue == queue).limit(COUNTED + 1).subquery()
    found = ask(session, jobs, sa.select(sa.func.count()).select_from(some)).scalar_one()
    return Count(min(found, COUNTED), is_least=found > COUNTED)


_CLOSED = 86_400.0
"""Seconds before a warning about a limit that lets nothing start."""


def _closed_limits(look: Look) -> Rows:
    """Find limits that have let nothing start for more than a day."""
    limit: Any = look.jobs.Limit
    age = age_of(limit.changed_at)
    is_closed = sa.or_(limit.running == 0, limit.rate == 0)
    ages: dict[str, float] = dict(look.ask(sa.select(limit.gate, age).where(is_closed, age > _CLOSED)).all())
    for one in read_limits(look.session, look.jobs) if ages else ():
        if one.gate in ages and (one.waiting or one.set_at is None):  # else an operator closed it, and no job waits
            yield {"it": one, "age": ages[one.gate], "name": named_on_command_line(one.gate)}


def _split_limits(look: Look) -> Rows:
    """Find limits whose keys are hashed by one program but not by another."""
    limit: Any = look.jobs.Limit
    rows = (
        sa.select(limit.gate, limit.declared, limit.tasks).where(limit.declared.has_key(HASHED_BY)).order_by(limit.gate)
    )
    for gate, declared, tasks in look.ask(rows):
        if (how := split_between(declared, tasks)) is not None:
            yield {"title": titled(gate), "how": how}


def _held_keys(look: Look) -> Rows:
    """Find failed jobs that keep their ordered key, so that the next jobs with that key wait."""
    for job_id, gate, number in Queries(look.jobs._models).held_keys(look.session, 20):
        yield {"id": job_id, "key": described(gate), "number": number}


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


LIMITS = (
    Check(
        name="limits that let nothing start",
        about="{it.title}",
        rows=_closed_limits,
        says="it has let nothing start for {age:duration} ({it.in_effect}), and {it.waiting:they_are job} waiting "
        "behind it",
        remedy="sqla-jobs limit set {name} with another number; or, if an operator has set it, sqla-jobs limit clear "
        "{name}",
    ),
    Check(
        name="held jobs",
        about="job {id}",
        rows=_held_keys,
        says=f"it failed and keeps the key {{key}}, and {{number:they_are job/{COUNTED}}} waiting behind it",
        remedy="sqla-jobs retry {id} runs it again; or sqla-jobs cancel {id} lets the next one start",
    ),
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

SPELLINGS = (
    Check(name="keys with two spellings", about="{title}", rows=_split_limits, says="{how}", remedy=SPLIT_REMEDY),
)
