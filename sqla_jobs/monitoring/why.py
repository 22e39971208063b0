"""`why`: the reasons why a job is waiting, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.actions.bulk_change import id_of
from sqla_jobs.errors import UnknownJob
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import NOT_RUNNING, PARKED, JobState
from sqla_jobs.monitoring.check import Look
from sqla_jobs.monitoring.examine import CHECKS
from sqla_jobs.monitoring.finding import ask, readable
from sqla_jobs.monitoring.limits import read_eaten, read_limits
from sqla_jobs.monitoring.locks import NEAREST, NEAREST_SAYS
from sqla_jobs.monitoring.prerequisites import of_blocked, of_cancelled
from sqla_jobs.monitoring.processes import places
from sqla_jobs.monitoring.queues import COUNTED
from sqla_jobs.monitoring.steps import StepWait, read_unread, read_wait
from sqla_jobs.queries import Queries
from sqla_jobs.queries.expressions import is_of_job
from sqla_jobs.queries.limit_status import GateStatus
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.queries.processes import age_of, is_alive
from sqla_jobs.queries.restrictions import is_of_operator
from sqla_jobs.rules.fitting import Takes
from sqla_jobs.rules.limits import described, named_on_command_line, ordered_gate, titled
from sqla_jobs.rules.outcomes import EXPIRY, RunOutcome
from sqla_jobs.rules.redaction import is_erased, parse
from sqla_jobs.rules.wording import Count, duration, moment, plural, they_are
from sqla_jobs.runtime.set_aside import EVENT_LOOP

_IS_MINE: Any = sa.literal_column("xmin = CAST(pg_current_xact_id_if_assigned() AS xid)", sa.Boolean)
"""True if the current transaction wrote the current version of the row."""
_NAMED = 3
"""The maximum number of jobs named in a sentence."""
_AHEAD = 3600.0
"""The minimum wait, in seconds, for `why` to mention that a job keeps its unique key."""


def why(session: Session, jobs: Jobs[Any], job: Any) -> list[str]:
    """Return the reasons why a job is waiting, or its outcome, as sentences. Raises `UnknownJob`."""
    row = _read(session, jobs, id_of(session, job))
    return [*_reasons(session, jobs, row), *_expiry(row)]


def _reasons(session: Session, jobs: Jobs[Any], row: Any) -> list[str]:
    match row.state:
        case JobState.queued:
            held_up = [*_held_up(session, jobs, row), *_refused(session, jobs, row), *_behind_gates(session, jobs, row)]
            return held_up or [*_next_in_line(session, jobs, row)]
        case JobState.scheduled:
            wait = read_wait(session, jobs, row.id, row.run_at)
            reasons = [_of_step(wait)] if wait is not None else _not_due(session, jobs, row)
            of_key = _of_key(row, is_in_step=wait is not None)
            return [*reasons, *_unread(session, jobs, row), *of_key, *_held_up(session, jobs, row)]
        case JobState.blocked:
            refused = [*_of_checks(session, jobs, row), *_refused(session, jobs, row)]
            return [*refused, *of_blocked(session, jobs, row, is_free=not refused)]
        case JobState.running:
            return [*_running(session, jobs, row)]
        case JobState.cancelled if row.waits_for is not None:
            return [*of_cancelled(session, jobs, row)]
        case _:
            return [_ended(session, jobs, row), *_cancelled_by(session, jobs, row)]


def _read(session: Session, jobs: Jobs[Any], job_id: int) -> Any:
    job: Any = jobs.Job
    run = jobs.Run.__table__
    of_job = sa.exists().where(run.c.job_id == job.id, is_of_job(run, job.__table__))
    # arguments and headers may be unreadable
    columns = [readable(column) for column in job.__table__.c if column.name not in ("args", "headers")]
    more = (
        sa.cast(job.args, sa.Text).label("args_text"),
        sa.func.clock_timestamp().label("now"),
        keeps_others_waiting(jobs._models).label("keeps_others_waiting"),
        sa.func.coalesce(_IS_MINE, False).label("is_uncommitted"),
        of_job.label("has_begun"),
        of_job.where(run.c.error_type == EXPIRY.type).label("has_expired"),
    )
    row = ask(session, jobs, sa.select(*columns, *more).where(job.id == job_id)).one_or_none()
    if row is None:
        raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
    return row


def _not_due(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    if row.run_at == PARKED:
        yield "It is parked: it waits until it is rescheduled or retried."
        return
    left = (row.run_at - row.now).total_seconds()
    when = f"{moment(row.run_at)}, in {duration(left)}"
    if left <= 0:
        yield f"It has been due for {duration(-left)}. Any live worker queues it at its next poll."
        return
    run: Any = jobs.Run
    last: Any = ask(
        session,
        jobs,
        sa.select(run.outcome, run.error_type, run.error, run.attempt)
        .where(run.job_id == row.id)
        .order_by(run.id.desc())
        .limit(1),
    ).first()
    if last is not None and last.outcome in (RunOutcome.retried, RunOutcome.lost):
        how = "lost its process" if last.outcome == RunOutcome.lost else f"failed with {last.error_type or 'an error'}"
        yield f"Attempt {last.attempt} of {row.max_attempts} {how}; the next one is due at {when}."
    elif last is not None and last.outcome == RunOutcome.snoozed:
        yield f"It snoozes until {when}."
        if last.error:
            error = jobs.tasks.secrets(row.task, row.args_text).text(last.error)
            yield f"Its last run put it off: {error[:1000]}."
    else:
        yield f"It is not due before {when}."


def _expiry(row: Any) -> Iterator[str]:
    """Yield what becomes, or became, of a job that expires."""
    if row.expires_at is None:
        return
    if row.state in NOT_RUNNING and not row.has_begun:
        if row.expires_at > row.now:
            yield f"It expires at {moment(row.expires_at)}, unless it has begun by then."
        else:
            yield f"It expired at {moment(row.expires_at)}: it does not run, and the next claim ends it as cancelled."
    elif row.state == JobState.cancelled and row.has_expired:
        yield f"It had not begun when it expired, at {moment(row.expires_at)}. `sqla-jobs retry {row.id}` runs it."


def _of_step(wait: StepWait) -> str:
    return f"It {wait.words}." if wait.signal is None else f"It {wait.words}; `{wait.signal}` sends it."


def _unread(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield the signals that the job has not asked for."""
    if names := read_unread(session, jobs, row.id):
        yield f"It has signals that it has not asked for: {', '.join(f'{name!r:.200}' for name in names)}."


def _of_key(row: Any, *, is_in_step: bool) -> Iterator[str]:
    """Yield sentences about the unique key of the job, and the enqueues that replaced it."""
    if row.times_replaced and row.started_at is None:
        age = duration((row.now - row.created_at).total_seconds())
        have = (
            f"{plural(row.times_replaced, 'enqueue')} of its unique key {'has' if row.times_replaced == 1 else 'have'}"
        )
        yield f"{have} replaced it since it was first enqueued, {age} ago."
    if row.unique_key is not None and (row.run_at - row.now).total_seconds() > _AHEAD:
        now = "" if is_in_step else f"`sqla-jobs retry {row.id}` runs it now, "  # a retry would only resume the wait
        yield (
            "It keeps its unique key meanwhile: an enqueue with that key makes no new job. "
            f"{now}`sqla-jobs cancel {row.id}` frees its key."
        )


def _of_checks(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield what the checks find out about the job."""
    look = Look(session, jobs, job_id=row.id, queue="" if row.state == JobState.blocked else row.queue)
    yield from (reason for check in CHECKS if check.is_of_job for reason in check.reasons(look))


def _held_up(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield the reasons why workers do not queue or claim the job."""
    yield from _of_checks(session, jobs, row)
    yield from _misfits(session, jobs, row)


def _misfits(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield a reason if the job's arguments do not fit a live worker's code."""
    process: Any = jobs.Process
    serves = (process.kind == "worker", is_alive(process), process.queues.has_key(row.queue))
    query = sa.select(process.host, process.pid, process.tasks[row.task]).where(*serves)
    workers: Any = ask(session, jobs, query.order_by(process.host, process.pid)).all()
    given = arguments if isinstance(arguments := parse(row.args_text), dict) else {}
    takes = {f"process {pid} of {host}": Takes.read(shown) for host, pid, shown in workers if shown is not None}
    misfits = {who: one for who, one in takes.items() if one is not None and not one.fits(given)}
    for who, wrong in islice(misfits.items(), 1):
        fit = len(workers) - len(misfits)
        yield (
            f"Its arguments ({', '.join(sorted(given))}) do not fit the code of {who}, which takes ({wrong}); "
            f"{they_are(fit, 'worker')} alive whose code they fit. Without one, the attempt fails after a minute."
        )


def _refused(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield the reasons why workers cannot claim the row: set aside, uncommitted or locked."""
    name = f"job {row.id}"
    process: Any = jobs.Process
    shown = process.set_aside
    query = sa.select(shown[name].astext).where(shown.has_key(name)).limit(1)
    for (reason,) in ask(session, jobs, query):
        said = jobs.tasks.secrets(row.task, row.args_text).text(str(reason))[:1000]
        yield (
            f"Workers pass it over, and try it again every minute: {said}. Fix the cause: the row, a trigger or "
            "constraint, or a function that makes keys."
        )
    if row.is_uncommitted:
        yield "This transaction has added or changed it: no worker can take it before the commit."


def _next_in_line(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    taken = [*_taken_slots(session, jobs, row.queue)]
    yield _place(session, jobs, row, "as soon as a slot is free" if taken else "next")
    yield from taken


def _place(session: Session, jobs: Jobs[Any], row: Any, when: str) -> str:
    if row.gates is not None:
        return "It is queued and nothing holds it: a worker takes it in its turn among those that wait behind limits."
    job: Any = jobs.Job
    is_before = sa.or_(job.priority < row.priority, sa.and_(job.priority == row.priority, job.position < row.position))
    before = sa.select(job.id).where(job.state == "queued", job.queue == row.queue, job.gates.is_(None), is_before)
    found = ask(session, jobs, sa.select(sa.func.count()).select_from(before.limit(COUNTED).subquery())).scalar_one()
    if not found:
        return f"It is queued and nothing holds it: a worker takes it {when}."
    number = Count(found, is_least=found == COUNTED)
    return f"It is queued, and {they_are(number, 'job')} before it in queue {row.queue!r}."


def _taken_slots(session: Session, jobs: Jobs[Any], queue: str) -> Iterator[str]:
    """Yield the jobs that occupy the queue's slots if none is free."""
    process, job = jobs.Process, jobs.Job
    live: Any = sa.select(process.queues).where(is_alive(process), process.kind == "worker")
    slots = sum(places(served, queue, 0) for served in ask(session, jobs, live).scalars())
    running = sa.select(job.id, job.task, age_of(job.started_at), job.started_at)
    running = running.where(job.state == "running", job.queue == queue).order_by(job.started_at)
    taken: list[Any] = ask(session, jobs, running.limit(slots)).all()
    if not slots or len(taken) < slots:
        return
    job_id, task, age, started_at = taken[0]
    by = f"the longest for {duration(age)} by job {job_id} ({task:.200})"
    yield f"The workers have {plural(slots, 'slot')} for queue {queue!r}, and jobs run in all of them, {by}."
    yield from _blocked(session, jobs, started_at, "that job")


def _blocked(session: Session, jobs: Jobs[Any], since: datetime | None, whose: str) -> Iterator[str]:
    """Yield who blocks the session that most likely belongs to a job claimed at `since`."""
    look = Look(session, jobs, since=since)
    yield from (look.words(NEAREST_SAYS, {**row, "whose": whose}) for row in look.rows(NEAREST))


def _running(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    process: Any = jobs.Process
    loop: Any = process.set_aside[EVENT_LOOP].astext.label("loop")
    where = sa.select(process.host, process.pid, loop).where(process.id == row.process_id, is_alive(process))
    found: Any = ask(session, jobs, where).one_or_none()
    for_long = duration((row.now - (row.started_at or row.now)).total_seconds())
    said = f"It runs: attempt {row.attempt} of {row.max_attempts}, for {for_long}"
    if found is None:
        yield f"{said}, in a process that has vanished; a worker rescues it within its lease."
        return
    asked = "" if row.cancel_requested_at is None else f"; it was asked to stop at {moment(row.cancel_requested_at)}"
    yield f"{said}, in process {found.pid} of {found.host}{asked}."
    task = jobs.tasks.get(row.task)
    if found.loop is not None and task is not None and task._declaration.signature.is_coroutine:
        yield f"The event loop of that process: {found.loop:.1000}."
    yield from _blocked(session, jobs, row.started_at, "this job")


def _cancelled_by(session: Session, jobs: Jobs[Any], row: Any) -> Iterator[str]:
    """Yield who cancelled the job and why, if the audit log has the entry."""
    if row.state != JobState.cancelled:
        return
    line = jobs.Audit
    asked = sa.select(line.actor, line.at, line.details["reason"].astext.label("reason"))
    asked = asked.where(line.action == "cancel", line.subject == f"job {row.id}").order_by(line.id.desc()).limit(1)
    found: Any = ask(session, jobs, asked).one_or_none()
    if found is not None:
        why = f" ({found.reason:.200})" if found.reason else ""
        yield f"{found.actor} cancelled it at {moment(found.at)}{why}."


def _ended(session: Session, jobs: Jobs[Any], row: Any) -> str:
    when = f"at {moment(row.finished_at)}" if row.finished_at is not None else ""
    erased = " Its data was erased, so it cannot be retried." if is_erased(parse(row.args_text)) else ""
    if row.state != JobState.failed:
        how = {JobState.succeeded: "succeeded", JobState.cancelled: "was cancelled"}.get(row.state, f"is {row.state}")
        return f"It {how} {when}".rstrip() + "." + erased
    said = f"It failed {when} after {plural(row.attempt, 'attempt')}."
    if row.keeps_others_waiting:
        return f"{said} It keeps the key {described(row.ordered_by)}: {_decide(row.id)}."
    return said + (erased or f" `sqla-jobs retry {row.id}` runs it again.")


def _decide(job_id: int) -> str:
    """Return the remedy if the other jobs of a key wait because this job has failed."""
    return f"`sqla-jobs retry {job_id}` runs it again, `sqla-jobs cancel {job_id}` lets the next one start"


def _behind_gates(session: Session, jobs: Jobs[Any], job: Any) -> Iterator[str]:
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
    key = described(order)
    state = ask(session, jobs, sa.select(jobs.Job.state).where(jobs.Job.id == head)).scalar()
    if state == JobState.failed:
        return f"Job {head} failed and keeps the key {key} until it is retried or cancelled: {_decide(head)}."
    return f"The jobs of {key} start in their order, and job {head} is before it: see `sqla-jobs show {head}`."


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
    rows = read_limits(session, jobs, jobs.Limit.gate.in_([gate, gate.partition("=")[0] + "="]))
    row = max((one for one in rows if one.is_closed), key=lambda one: len(one.gate), default=None)
    if row is None or row.set_at is None:
        return f"code declares 0; `sqla-jobs limit set {named_on_command_line(gate)}` overrides that"
    reason = f" ({row.set_reason:.200})" if row.set_reason else ""
    command = f"sqla-jobs limit clear {named_on_command_line(row.gate)}"
    return (
        f"{row.set_by or 'an operator'} set it to 0 at {moment(row.set_at)}{reason}; `{command}` removes that override"
    )
