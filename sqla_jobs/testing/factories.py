"""Factories for jobs and runs in any state, for tests of an application's pages and reports."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session

from sqla_jobs.actions.batches import id_of
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin, RunMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, MAX_ATTEMPTS, IfFailed, JobState
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.rules.limits import ordered_gate
from sqla_jobs.rules.outcomes import Failure, RunOutcome
from sqla_jobs.rules.value_checks import check_integer
from sqla_jobs.tasks.after import Begun, Waiting, check_after
from sqla_jobs.tasks.enqueuer import Enqueuer
from sqla_jobs.tasks.sessions import AnySession, plain_session
from sqla_jobs.testing.matching import some_arguments
from sqla_jobs.testing.messages import call_of, check_task_or_jobs

J = TypeVar("J", bound=JobMixin)
StateName = Literal["blocked", "scheduled", "queued", "running", "succeeded", "failed", "cancelled"]
IfFailedName = Literal["cancel", "run", "hold"]
OutcomeName = Literal["succeeded", "failed", "cancelled", "retried", "snoozed", "lost"]

_BEGUN = (JobState.running, JobState.succeeded, JobState.failed)
_KEEPS_WAITING = (JobState.blocked, JobState.cancelled)
"""The states in which a job can name another job that it waits for, or waited for."""
_FAILED = (RunOutcome.failed, RunOutcome.retried)
_DEFAULTS = {"task": "example", "queue": "default", "priority": 0, "max_attempts": MAX_ATTEMPTS}
_APART, _TOOK, _LATER = timedelta(seconds=10), timedelta(seconds=1), timedelta(hours=1)


def make_job(
    session: AnySession,
    what: Jobs[J] | Enqueuer[..., J],
    /,
    *,
    state: JobState | StateName | None = None,
    args: Mapping[str, Any] | None = None,
    after: JobMixin | BatchMixin | Sequence[JobMixin | BatchMixin] | None = None,
    if_failed: IfFailed | IfFailedName | None = None,
    batch: BatchMixin | None = None,
    attempt: int | None = None,
    result: Any = None,
    error: BaseException | None = None,
    **columns: Any,
) -> J:
    """Add a job in `state`, and flush it. Its times and runs fit the state, and a running job gets a live process.

    - `session`: the test's session.
    - `what`: the job's task, or `task.options(…)`. With a `Jobs`, the job's task is the one named by `task=`, by
      default "example", and `args` is any JSON object.
    - `state`: a `JobState` or its name. The default is "queued"; with `after`, it is the state that an enqueue would
      give. A scheduled job is due in an hour. A running job belongs to a process that stays alive for a day.
    - `args`: some of the task's arguments; arguments without a value are left out.
    - `attempt`: the number of started attempts: by default 1 for a job that is running, succeeded or failed, else 0.
      Each attempt that has ended has a run. All attempts before the last were retried.
    - `result`: the result of the last run of a job that succeeded.
    - `error`: the exception of the job's failed and retried runs; by default a `RuntimeError`.
    - `after`, `if_failed`, `batch`: as for `task.options(…)`.
    - `columns`: other values of the row, by name, such as `queue="mail"`, `finished_at=…`, and columns of your own.

    Raises `ArgumentsError` for arguments that do not fit the task, for an unknown state, and for an attempt that no job
    in that state has.
    """
    check_task_or_jobs(what)
    own = plain_session(session, call_of(make_job, what, {}))
    job_class = what._models.Job
    waiting = _waiting(own, what._models, after, if_failed)
    waits = {} if waiting is None else {**waiting[1].values}
    by_default = waits.pop("state", "queued")
    reached = _state(state or by_default)
    number = (1 if reached in _BEGUN else 0) if attempt is None else attempt
    check_integer("attempt", number, least=1 if reached in _BEGUN else 0, most=columns.get("max_attempts", 1_000_000))
    outcomes = _outcomes(reached, number)
    own.flush()
    last = columns.get("finished_at") or columns.get("started_at") or _now(own, job_class)
    values: dict[str, Any] = {
        **_declared(own, what, args or {}, columns.pop("task", None)),
        **_times(reached, number, last),
        "state": reached,
        "attempt": number,
        **{name: value for name, value in waits.items() if reached in _KEEPS_WAITING or name == "if_failed"},
        **({} if batch is None else {"batch_id": id_of(own, what._models, batch)}),
    }
    values["max_attempts"] = max(values["max_attempts"], number)
    if reached == JobState.running:
        values |= _lease(own, what._models, columns.get("queue", values["queue"]))
    values |= columns
    job = job_class(**values)
    own.add(job)
    own.flush()
    if waiting is not None:
        others, begun = waiting
        others.end(own, begun, [job.id])
    for index, outcome in enumerate(outcomes, start=1):
        ended = last - (number - index) * _APART
        _add_run(own, job, RunOutcome(outcome), index, ended, result, error)
    return job


def _add_run(
    session: Session,
    job: JobMixin,
    outcome: RunOutcome,
    attempt: int,
    ended: datetime,
    result: Any,
    error: BaseException | None,
) -> None:
    mapper: Mapper[Any] = sa.inspect(type(job), raiseerr=True)
    run_class: type[RunMixin] = mapper.relationships["runs"].mapper.class_
    row = run_class(
        job_id=job.id,
        attempt=attempt,
        process_id=uuid.uuid4(),
        started_at=ended - _TOOK,
        finished_at=ended,
        outcome=outcome,
        result=result if outcome == RunOutcome.succeeded else None,
        **_error_columns(outcome, error),
    )
    session.add(row)
    session.flush()
    session.expire(job, ["runs"])


def make_batch(
    session: AnySession,
    what: Jobs[Any] | Enqueuer[..., Any],
    /,
    *,
    name: str = "",
    states: Mapping[JobState | StateName, int] | None = None,
    args: Mapping[str, Any] | None = None,
    **columns: Any,
) -> BatchMixin:
    """Add a batch with jobs in these states, and flush it.

    - `session`: the test's session.
    - `what`: the jobs' task, or `task.options(…)`, or the `Jobs`, as for `make_job`.
    - `name`: the batch's name.
    - `states`: the number of jobs in each state, such as `{"succeeded": 3, "failed": 1}`; by default no jobs.
    - `args`: the arguments of each job, as for `make_job`.
    - `columns`: other values of the batch's row, by name, such as `created_at=…`.

    Raises the same errors as `make_job`.
    """
    check_task_or_jobs(what)
    own = plain_session(session, call_of(make_batch, what, {}))
    batch = what._models.Batch(name=name, **columns)
    own.add(batch)
    own.flush()
    for state, number in (states or {}).items():
        check_integer(f"states[{str(state)!r}]", number, least=0, most=10_000)
        for _ in range(number):
            make_job(own, what, state=state, args=args, batch=batch)
    return batch


def _waiting(
    session: Session, models: Models[Any], after: Any, if_failed: IfFailed | IfFailedName | None
) -> tuple[Waiting, Begun] | None:
    """Return what a job enqueued after `after` would now wait for; None without `after`."""
    options = {"after": after, "if_failed": if_failed}
    given = {name: value for name, value in options.items() if value is not None}
    check_after(given)
    if "after" not in given:
        return None
    waiting = Waiting(models, given)
    return waiting, waiting.begin(session)


def _now(session: Session, job_class: type[Any]) -> datetime:
    now: datetime = session.execute(
        sa.select(sa.func.clock_timestamp()), bind_arguments={"mapper": job_class}
    ).scalar_one()
    return now


def _state(state: str) -> JobState:
    if state not in list(JobState):
        raise ArgumentsError(f"state must be one of {', '.join(JobState)}, got {state!r:.60}")
    return JobState(state)


def _outcomes(state: JobState, attempt: int) -> Sequence[RunOutcome]:
    """Return the outcomes of the job's runs, in order."""
    if state in ENDED:
        return [*[RunOutcome.retried] * (attempt - 1), *([RunOutcome(state.value)] if attempt else [])]
    return [RunOutcome.retried] * (attempt - 1 if state == JobState.running else attempt)


def _declared(
    session: Session, what: Jobs[Any] | Enqueuer[..., Any], args: Mapping[str, Any], task: str | None
) -> dict[str, Any]:
    """Return the columns that an enqueue would set."""
    if isinstance(what, Jobs):
        return {**_DEFAULTS, "args": dict(args)} | ({} if task is None else {"task": task})
    if task is not None:
        raise ArgumentsError(f"the job is one of {what._declaration.name!r}: leave out task=, or give the Jobs for it")
    if (error := what._unknown(args)) is not None:
        raise error
    declaration = what._declaration
    stored = some_arguments(session, declaration, args)
    values = {**what._columns, "args": stored}
    if gates := declaration.gates_of(stored):
        values |= {"gates": gates, "ordered_by": ordered_gate(gates)}
    if what._unique is not None:
        values["unique_key"] = what._unique.key_of(stored)
    return values


def _times(state: JobState, attempt: int, last: datetime) -> dict[str, Any]:
    begun = last - _TOOK
    times = {"created_at": begun - max(attempt, 1) * _APART}
    if attempt:
        times["started_at"] = begun
    if state in ENDED:
        times["finished_at"] = last
    elif state == JobState.scheduled:
        times["run_at"] = last + _LATER
    return times


def _lease(session: Session, models: Models[Any], queue: str) -> dict[str, Any]:
    """Add a live process, and return the columns of a job that it is running."""
    process = models.Process(kind="worker", host="example", pid=1, queues={queue: 1}, lease=86400.0)
    session.add(process)
    session.flush()
    lease = sa.select(models.run_ids.next_value())
    return {"process_id": process.id, "current_run_id": session.scalar(lease, bind_arguments={"mapper": models.Job})}


def _error_columns(outcome: RunOutcome, error: BaseException | None) -> dict[str, Any]:
    if outcome == RunOutcome.cancelled:
        failure = Failure("Cancel", "cancelled while it ran")
    elif outcome in _FAILED:
        failure = Failure.of(RuntimeError("it went wrong") if error is None else error)
    else:
        return {}
    return {"error_type": failure.type, "error": failure.message, "traceback": failure.traceback}
