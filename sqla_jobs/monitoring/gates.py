"""The gates behind which a job is waiting: which are full, which jobs fill them, and until when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import PARKED, JobState
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.limits import read_eaten, read_setters
from sqla_jobs.monitoring.steps import read_wait
from sqla_jobs.queries import Queries
from sqla_jobs.queries.limit_status import GateStatus
from sqla_jobs.queries.restrictions import is_of_operator
from sqla_jobs.rules.limits import described, named_on_command_line, ordered_gate, titled
from sqla_jobs.rules.wording import duration, moment, plural

_NAMED = 3
"""The maximum number of jobs named in a sentence."""


def decide(job_id: int) -> str:
    """Return the remedy if the other jobs of a key wait because this job has failed."""
    return f"`sqla-jobs retry {job_id}` runs it again, `sqla-jobs cancel {job_id}` lets the next one start"


def behind_gates(session: Session, jobs: Jobs[Any], job: Any) -> Iterator[str]:
    """Yield the reasons why a queued job may not start now: full limits, and the order of its key.

    `job` is a row of the jobs table, with its arguments as `args_text`.
    """
    gates = _gates(session, jobs, job)
    queries = Queries(jobs._models)
    states = queries.gate_statuses(session, [*gates, f"@{job.queue}"], _NAMED)
    full = [state for state in states if state.is_full]
    order = ordered_gate(gates)
    if order is not None and all(state.gate != order for state in full):
        head = queries.head_of_key(session, order)
        if head is not None and head != job.id:
            yield _behind(session, jobs, order, head)
    for state in full:
        yield _full(session, jobs, state)


def _gates(session: Session, jobs: Jobs[Any], job: Any) -> list[str]:
    """Return the gates that the job has, and those that a worker would add before starting it."""
    found = dict.fromkeys(job.gates or ())
    names: Sequence[str] = [job.task]
    if (task := jobs.tasks.get(job.task)) is not None:
        names = [task._declaration.name, *task._declaration.aliases]
        found |= dict.fromkeys(task._declaration.gates_beside(job.args_text, job.gates or ()))
    limit: Any = jobs.Limit
    by_operators = sa.select(limit.gate).where(is_of_operator(limit), limit.tasks.overlap(names))
    return [*(found | dict.fromkeys(ask(session, jobs, by_operators).scalars()))]


def _behind(session: Session, jobs: Jobs[Any], order: str, head: int) -> str:
    job = jobs.Job
    key = described(order)
    row = ask(session, jobs, sa.select(job.state, job.run_at).where(job.id == head)).one_or_none()
    if row is None or row.state == JobState.queued:
        return f"The jobs of {key} start in their order, and job {head} is before it."
    if row.state == JobState.failed:
        return f"Job {head} failed and keeps the key {key} until it is retried or cancelled: {decide(head)}."
    if (wait := read_wait(session, jobs, head, row.run_at)) is not None:
        until = wait.words
    elif row.run_at == PARKED:
        until = "is parked"
    else:
        until = f"waits until {moment(row.run_at)} for its next attempt"
    return f"The jobs of {key} start in their order, and job {head} {until}."


def _full(session: Session, jobs: Jobs[Any], state: GateStatus) -> str:
    name = titled(state.gate)
    if state.most == 0:
        return f"The {name} lets nothing start: {_who_closed(session, jobs, state.gate)}."
    if state.since is None:
        holders = ", ".join(map(str, state.holders))
        more = ", …" if state.used > len(state.holders) else "."
        return (
            f"The {name} is full: of at most {plural(state.most, 'job')} at once, {state.used:,} run: {holders}{more}"
        )
    used, most, per = state.used, state.most, state.per
    if state.close is not None:
        used, most, per = int(state.close[0]), int(state.close[0]), state.close[1]
    taken = f"{used:,} of at most {plural(most, 'start')} in {duration(per)} are taken"
    next_at = state.next_at
    when = "" if next_at is None else f"; the next one is possible at {moment(next_at)}, in {duration(state.next_in)}"
    eaten = read_eaten(session, jobs, state.gate, state.since)
    return f"The {name} is used up: {taken}{when}.{'' if eaten is None else f' {eaten}.'}"


def _who_closed(session: Session, jobs: Jobs[Any], gate: str) -> str:
    limit: Any = jobs.Limit
    rows = [gate, gate.partition("=")[0] + "="]
    row = ask(
        session,
        jobs,
        sa.select(limit.gate, limit.set_at)
        .where(limit.gate.in_(rows), sa.or_(limit.running == 0, limit.rate == 0))
        .order_by(sa.func.length(limit.gate).desc())
        .limit(1),
    ).first()
    if row is None or row.set_at is None:
        return f"code declares 0; `sqla-jobs limit set {named_on_command_line(gate)}` overrides that"
    command = f"sqla-jobs limit clear {named_on_command_line(row.gate)}"
    by, why = read_setters(session, jobs, {row.gate: row.set_at}).get(row.gate, ("an operator", None))
    reason = f" ({why:.200})" if why else ""
    return f"{by} set it to 0 at {moment(row.set_at)}{reason}; `{command}` removes that override"
