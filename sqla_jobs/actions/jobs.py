"""The kinds of changes to one job or many: cancel, retry, move, reschedule, delete and erase."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

import sqlalchemy as sa
from psycopg.errors import UniqueViolation
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.bulk_change import BUSY, Change, Chosen, Conditions, States, id_of
from sqla_jobs.database.commits import savepoint
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.subscribers import BLOCKED
from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, LIVE, MOST_ATTEMPTS, NOT_RUNNING, PARKED, WAITING, JobState
from sqla_jobs.queries import change_jobs
from sqla_jobs.queries.delete_jobs import Reference, Removal
from sqla_jobs.queries.edges import revive
from sqla_jobs.queries.erasing import has_arguments
from sqla_jobs.queries.expressions import is_of_job, seconds
from sqla_jobs.queries.graphs import Graphs
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.retention import Rule
from sqla_jobs.rules.value_checks import check_moment, check_seconds
from sqla_jobs.tasks.enqueue import check_common

log: logging.Logger = logging.getLogger("sqla_jobs")


@dataclass(frozen=True, slots=True)
class Cancel(Change):
    """Cancel: a waiting job ends as `cancelled`, and a running job is asked to stop.

    A failed job is also cancelled if its id is given and the other jobs of its ordered key have to wait for it. With
    `kill`, the parent process kills the process of a job that does not stop. A later request without `kill` does not
    withdraw an earlier request to kill.
    """

    name: ClassVar[str] = "cancel"
    past: ClassVar[str] = "cancelled"
    states: ClassVar[States] = LIVE
    by_default: ClassVar[States] = LIVE
    kill: bool = False
    reason: str | None = None

    @property
    def details(self) -> dict[str, Any]:
        return {**({"kill": True} if self.kill else {}), **({"reason": self.reason} if self.reason is not None else {})}

    @classmethod
    def allowed(cls, models: Models[Any], *, named: bool) -> sa.ColumnElement[bool]:
        is_live = models.Job.state.in_(cls.states)
        return sa.or_(is_live, keeps_others_waiting(models)) if named else is_live

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        job = models.Job
        runs = job.state == JobState.running
        return {
            "state": sa.case((runs, job.state), else_="cancelled"),
            "finished_at": sa.case((runs, sa.null()), else_=sa.func.clock_timestamp()),
            "cancel_requested_at": sa.func.coalesce(job.cancel_requested_at, sa.func.clock_timestamp()),
            "kill_requested": True if self.kill else job.kill_requested,
            # another job can take the key at once; a job with a period stays the one of that period
            "unique_key": sa.case((sa.and_(runs, job.unique_period.is_(None)), sa.null()), else_=job.unique_key),
            # a retry of another job does not revive a job that a person has cancelled
            "waits_for": sa.case((runs, job.waits_for), else_=sa.null()),
        }


_ERASED = "its arguments were erased; enqueue a new job instead"
_WAIT = "has its unique key; wait for that one, or cancel it"


@dataclass(frozen=True, slots=True)
class Retry(Change):
    """Retry: an ended, waiting or blocked job is queued immediately, with at least one attempt left.

    The runs that the job has lost in a row are counted anew.

    If another job was cancelled because this job had failed, the other job waits for this one again. An ended job that
    was enqueued after live jobs, such as those that are retried with it, waits for them again.

    `over` is a timedelta or a number of seconds. If it is given, the `number` jobs become due one by one, oldest first,
    evenly spread over that time from now. Of several jobs with the same unique key, only the newest is retried. A job
    whose key belongs to a live job is not retried, and neither is an erased job. Raises `ArgumentsError`.
    """

    name: ClassVar[str] = "retry"
    past: ClassVar[str] = "retried"
    states: ClassVar[States] = (*ENDED, JobState.scheduled, JobState.blocked)
    by_default: ClassVar[States] = (JobState.failed, JobState.cancelled)
    left_because: ClassVar[str] = (
        f"its arguments were erased, another job that lives, or is newer, has its unique key, or {BUSY}"
    )
    over: timedelta | float | None = None
    number: int = 1

    def __post_init__(self) -> None:
        if self.over is not None:
            check_seconds("over", self.over)

    @property
    def details(self) -> dict[str, Any]:
        return {} if self.over is None else {"over": str(timedelta(seconds=check_seconds("over", self.over)))}

    def for_many(self, number: int) -> Change:
        return replace(self, number=number)

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        job, run = models.Job, models.Run
        # the attempt that a loss gave back counts from now on, so that the losses before this do not
        lost = sa.select(sa.func.max(run.attempt)).where(run.job_id == job.id, run.outcome == RunOutcome.lost)
        lost = lost.where(is_of_job(run.__table__, job.__table__))
        lost_in = lost.correlate_except(run).scalar_subquery()
        attempt = sa.case((job.max_lost.is_not(None), sa.func.greatest(job.attempt, lost_in)), else_=job.attempt)
        queued = {
            "state": "queued",
            "position": change_jobs.new_position(models),
            "run_at": sa.func.clock_timestamp(),
            "attempt": attempt,
            "max_attempts": sa.func.least(sa.func.greatest(job.max_attempts, attempt + 1), MOST_ATTEMPTS),
            "finished_at": sa.null(),
            "cancel_requested_at": sa.null(),
            "kill_requested": False,
            "expires_at": sa.null(),
            "waits_for": sa.null(),
            "waits_at": sa.null(),
        }
        if self.over is None:
            return queued
        step = check_seconds("over", self.over) / max(1, self.number)
        place = min(chosen.values(), default=0) - 1 + change_jobs.place(models)
        return queued | {"state": "scheduled", "run_at": sa.func.clock_timestamp() + seconds(place * step)}

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        job, other = models.Job, aliased(models.Job)
        has_rival = sa.select(other.id).where(
            other.unique_key == job.unique_key,
            other.id != job.id,
            sa.or_(
                other.state.in_(LIVE),
                (other.id == sa.any_(change_jobs.IDS)) & other.state.in_(ENDED) & (other.id > job.id),
            ),
        )
        is_chosen = job.id == sa.any_(sa.literal([*chosen], sa.ARRAY(sa.BigInteger)))
        depends = job.state.in_(ENDED) & job.if_failed.is_not(None)
        ended = change_jobs.hold_all(session, models, [is_chosen, depends], skip_locked=True)
        is_held = sa.or_(~depends, job.id == sa.any_(sa.literal(ended, sa.ARRAY(sa.BigInteger))))
        wanted = [*conditions, has_arguments(models.Job.args), ~has_rival.exists(), is_held]
        changed = Change.apply(self, session, models, chosen, wanted)
        if changed:
            number, erased = revive(session, models, [*chosen], ended)
            if number:
                after_commit(session, models.Job, models.channel, BLOCKED)
            for job_id in erased:
                log.warning("job %d, which would wait for a retried job again, stays cancelled: %s", job_id, _ERASED)
        return changed

    def one(self, it: Changing, job: JobMixin | int) -> bool:
        it.session.flush()  # errors about the caller's own rows are raised here, unchanged
        try:
            with savepoint(it.session, it.models.Job):
                return Change.one(self, it, job)
        except IntegrityError as error:  # another job with the key has been committed meanwhile
            if not isinstance(error.orig, UniqueViolation):
                raise
            raise JobsError(f"job {id_of(it.session, job)} cannot be retried: another live job {_WAIT}") from error

    @classmethod
    def obstacle(cls, session: Session, models: Models[Any], job_id: int) -> str | None:
        job, other = models.Job, aliased(models.Job)
        if session.scalar(sa.select(job.id).where(job.id == job_id, ~has_arguments(models.Job.args))) is not None:
            return _ERASED
        rivals = sa.select(other.id).join(job, job.unique_key == other.unique_key)
        rival = session.scalar(rivals.where(job.id == job_id, other.id != job_id, other.state.in_(LIVE)))
        return None if rival is None else f"live job {rival} {_WAIT}"

    @classmethod
    def obstacles(cls, session: Session, models: Models[Any], conditions: Conditions) -> list[tuple[int, str]]:
        job, other = models.Job, aliased(models.Job)
        rival = sa.select(other.id).where(other.unique_key == job.unique_key, other.id != job.id, other.state.in_(LIVE))
        reasons = {
            _ERASED: ~has_arguments(models.Job.args),
            f"a live job {_WAIT}": has_arguments(models.Job.args) & rival.exists(),
        }
        return [
            (session.scalar(sa.select(sa.func.count()).select_from(job).where(*conditions, is_so)) or 0, said)
            for said, is_so in reasons.items()
        ]


@dataclass(frozen=True, slots=True)
class Move(Change):
    """Move: a waiting job goes to the end of another queue, or of another priority in its queue.

    A job of an ordered key keeps its position in that order, whatever its queue and priority. Raises `ArgumentsError`.
    """

    name: ClassVar[str] = "move"
    past: ClassVar[str] = "moved"
    states: ClassVar[States] = WAITING
    by_default: ClassVar[States] = WAITING
    queue: str | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        if not self.details:
            raise ArgumentsError("neither queue= nor priority= is given: name the one to change")
        check_common(self.details)

    @property
    def details(self) -> dict[str, Any]:
        given = {"queue": self.queue, "priority": self.priority}
        return {name: value for name, value in given.items() if value is not None}

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        job = models.Job
        position = sa.case((job.ordered_by.is_not(None), job.position), else_=models.positions.next_value())
        return {**self.details, "position": position}


@dataclass(frozen=True, slots=True)
class Reschedule(Change):
    """Reschedule: a waiting job waits until `run_at`, a datetime with a time zone or a timedelta from now.

    Raises `ArgumentsError`.
    """

    name: ClassVar[str] = "reschedule"
    past: ClassVar[str] = "rescheduled"
    states: ClassVar[States] = WAITING
    by_default: ClassVar[States] = WAITING
    run_at: datetime | timedelta

    def __post_init__(self) -> None:
        if isinstance(self.run_at, timedelta):
            check_seconds("run_at", self.run_at)
        elif self.run_at.utcoffset() is None:
            raise ArgumentsError(f"run_at must be a datetime with a time zone, got {self.run_at!r}")
        elif self.run_at != PARKED:
            check_moment("run_at", self.run_at)

    @property
    def details(self) -> dict[str, Any]:
        return {"run_at": f"in {self.run_at}" if isinstance(self.run_at, timedelta) else self.run_at.isoformat()}

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        is_from_now = isinstance(self.run_at, timedelta)
        return {"state": "scheduled", "run_at": sa.func.clock_timestamp() + self.run_at if is_from_now else self.run_at}


@dataclass(frozen=True, slots=True)
class Delete(Change):
    """Delete: a job that is not running is deleted with its runs, unless application rows refer to it."""

    name: ClassVar[str] = "delete"
    past: ClassVar[str] = "deleted"
    states: ClassVar[States] = (*ENDED, *NOT_RUNNING)
    by_default: ClassVar[States] = (*ENDED, *NOT_RUNNING)
    left_because: ClassVar[str] = f"rows of the application refer to it, or {BUSY}"
    removes: ClassVar[bool] = True

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        removal = Removal(models)
        after_commit(session, models.Job, models.channel, "")  # the next jobs of the same keys may start
        return removal.remove(session, [*chosen], conditions, removal.references(session))

    @classmethod
    def obstacle(cls, session: Session, models: Models[Any], job_id: int) -> str | None:
        return " ".join(map(_kept_by, Removal(models).referring(session, job_id))) or None

    @classmethod
    def obstacles(cls, session: Session, models: Models[Any], conditions: Conditions) -> list[tuple[int, str]]:
        return [(number, _kept_by(key)) for key, number in Removal(models).kept(session, conditions)]


@dataclass(frozen=True, slots=True)
class Prune(Delete):
    """Prune: like `Delete`, but keeps the graphs in which not all jobs are old enough by one of the rules."""

    otherwise: ClassVar[str] = f"a job of their graph has not ended, or not long enough ago, or {BUSY}"
    rules: tuple[Rule, ...] = ()

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        removal, graphs = Removal(models), Graphs(models, self.rules)
        after_commit(session, models.Job, models.channel, "")
        ids = [job_id for job_id in graphs.whole(session, [*chosen]) if job_id in chosen]
        return removal.prune(session, ids, conditions, removal.references(session), graphs)


def _kept_by(key: Reference) -> str:
    return f"kept by rows of {key}. {key.remedy}"


@dataclass(frozen=True, slots=True)
class Erase(Change):
    """Erase, for data protection: an ended job's arguments, results and errors are removed, but its rows stay."""

    name: ClassVar[str] = "erase"
    past: ClassVar[str] = "erased"
    states: ClassVar[States] = ENDED
    by_default: ClassVar[States] = ENDED
    spares: ClassVar[States] = LIVE
    hides: ClassVar[tuple[str, ...]] = ("args", "results", "error", "unique_keys")

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        return change_jobs.erase(session, models, [*chosen], conditions)
