"""The kinds of changes to one job or many: cancel, retry, move, reschedule, delete and erase."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.bulk_change import Change, Chosen, Conditions, States
from sqla_jobs.actions.selection import Selection, seconds_since
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.subscribers import BLOCKED
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import ENDED, LIVE, MOST_ATTEMPTS, NOT_RUNNING, PARKED, WAITING, JobState
from sqla_jobs.queries import change_jobs
from sqla_jobs.queries.delete_jobs import Removal
from sqla_jobs.queries.edges import revive
from sqla_jobs.queries.erasing import has_arguments
from sqla_jobs.queries.expressions import is_of_job, seconds
from sqla_jobs.queries.graphs import Graphs
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.rules.retention import Rule
from sqla_jobs.rules.value_checks import check_moment, check_seconds
from sqla_jobs.tasks.enqueue import EnqueueOptions
from sqla_jobs.tasks.options import checked

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
    def allowed(cls, models: Models[Any], selection: Selection) -> sa.ColumnElement[bool]:
        is_live: sa.ColumnElement[bool] = models.Job.state.in_(cls.states)
        return sa.or_(is_live, keeps_others_waiting(models)) if selection.ids else is_live

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


@dataclass(frozen=True, slots=True)
class Retry(Change):
    """Retry: an ended, waiting or blocked job is queued immediately, with at least one attempt left.

    The runs that the job has lost in a row are counted anew.

    If another job was cancelled because this job had failed, the other job waits for this one again. An ended job that
    was enqueued after live jobs, such as those that are retried with it, waits for them again.

    `over` is a timedelta or a number of seconds. If it is given, the `number` jobs become due one by one, oldest first,
    evenly spread over that time from now. Of several jobs with the same unique key, only the newest is retried. A job
    whose key belongs to a live job is left alone, and so is an erased job. Of a batch, the jobs that were cancelled
    because another job had failed come back with that one. Raises `ArgumentsError`.
    """

    name: ClassVar[str] = "retry"
    past: ClassVar[str] = "retried"
    states: ClassVar[States] = (*ENDED, JobState.scheduled, JobState.blocked)
    by_default: ClassVar[States] = (JobState.failed, JobState.cancelled)
    over: timedelta | float | None = None
    number: int = 1

    def __post_init__(self) -> None:
        if self.over is not None:
            check_seconds("over", self.over)

    @property
    def details(self) -> dict[str, Any]:
        return {} if self.over is None else {"over": str(timedelta(seconds=check_seconds("over", self.over)))}

    def for_jobs(self, selection: Selection, number: int) -> Change:
        return replace(self, number=number)

    @classmethod
    def allowed(cls, models: Models[Any], selection: Selection) -> sa.ColumnElement[bool]:
        job = models.Job
        is_allowed: sa.ColumnElement[bool] = job.state.in_(cls.states)
        return is_allowed & job.waits_for.is_(None) if selection.batches and not selection.ids else is_allowed

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

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> Sequence[int]:
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
        after_commit(session, models.Job, models.channel, "")
        changed = change_jobs.update_jobs(session, models, [*chosen], wanted, self.values(models, chosen))
        if changed:
            number, erased = revive(session, models, [*chosen], ended)
            if number:
                after_commit(session, models.Job, models.channel, BLOCKED)
            for job_id in erased:
                log.warning("job %d, which would wait for a retried job again, stays cancelled: it is erased", job_id)
        return changed


@dataclass(frozen=True, slots=True)
class Alter(Change):
    """Change: a waiting job goes to the end of another queue or priority, or waits until another time.

    `to` is the name of a queue. `run_at` is a datetime with a time zone, or a timedelta from now. A job of an ordered
    key keeps its position in that order, whatever its queue and priority. Raises `ArgumentsError`.
    """

    name: ClassVar[str] = "change"
    past: ClassVar[str] = "changed"
    states: ClassVar[States] = WAITING
    by_default: ClassVar[States] = WAITING
    to: str | None = None
    priority: int | None = None
    run_at: datetime | timedelta | None = None

    def __post_init__(self) -> None:
        if not (self._place or self.run_at is not None):
            raise ArgumentsError("nothing to change is given: give a queue, a priority or a time")
        checked(EnqueueOptions, self._place, "the change", ArgumentsError)
        if isinstance(self.run_at, timedelta):
            check_seconds("run_at", self.run_at)
        elif self.run_at is not None and self.run_at.utcoffset() is None:
            raise ArgumentsError(f"run_at must be a datetime with a time zone, got {self.run_at!r}")
        elif self.run_at is not None and self.run_at != PARKED:
            check_moment("run_at", self.run_at)

    @property
    def _place(self) -> dict[str, Any]:
        given = {"queue": self.to, "priority": self.priority}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def details(self) -> dict[str, Any]:
        if self.run_at is None:
            return self._place
        run_at = f"in {self.run_at}" if isinstance(self.run_at, timedelta) else self.run_at.isoformat()
        return {**self._place, "run_at": run_at}

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        job, values = models.Job, self._place
        if values:
            at_the_end = sa.case((job.ordered_by.is_not(None), job.position), else_=models.positions.next_value())
            values["position"] = at_the_end
        if self.run_at is not None:
            is_from_now = isinstance(self.run_at, timedelta)
            values["state"] = "scheduled"
            values["run_at"] = sa.func.clock_timestamp() + self.run_at if is_from_now else self.run_at
        return values


@dataclass(frozen=True, slots=True)
class Delete(Change):
    """Delete: a job that is not running is deleted with its runs, unless application rows refer to it.

    Of jobs selected by the time of their end, only those are deleted that the pruning of workers would delete at that
    age: a job stays as long as a job of its graph has not ended, or not long enough ago.
    """

    name: ClassVar[str] = "delete"
    past: ClassVar[str] = "deleted"
    states: ClassVar[States] = (*ENDED, *NOT_RUNNING)
    by_default: ClassVar[States] = (*ENDED, *NOT_RUNNING)
    removes: ClassVar[bool] = True
    ended: Sequence[str] = ENDED
    ended_before: datetime | timedelta | None = None

    def for_jobs(self, selection: Selection, number: int) -> Change:
        return replace(self, ended=selection.states or ENDED, ended_before=selection.ended_before)

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> Sequence[int]:
        removal = Removal(models)
        after_commit(session, models.Job, models.channel, "")  # the next jobs of the same keys may start
        references = removal.references(session)
        if self.ended_before is None:
            return removal.remove(session, [*chosen], conditions, references)
        age = seconds_since(session, models, self.ended_before)
        graphs = Graphs(models, [Rule(state, age, for_all=True) for state in self.ended])
        ids = [job_id for job_id in graphs.whole(session, [*chosen]) if job_id in chosen]
        return removal.prune(session, ids, [*conditions, removal.keeps_none_waiting()], references, graphs)


@dataclass(frozen=True, slots=True)
class Erase(Change):
    """Erase, for data protection: an ended job's arguments, results and errors are removed, but its rows stay."""

    name: ClassVar[str] = "erase"
    past: ClassVar[str] = "erased"
    states: ClassVar[States] = ENDED
    by_default: ClassVar[States] = ()  # live jobs that are selected count as left alone
    sees: ClassVar[States] = LIVE
    hides: ClassVar[tuple[str, ...]] = ("args", "results", "error", "text", "unique_keys")

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> Sequence[int]:
        return change_jobs.erase(session, models, [*chosen], conditions)
