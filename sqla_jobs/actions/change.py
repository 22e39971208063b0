"""A change of jobs: of one, or of many in batches of one short transaction each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeAlias

from sqlalchemy import ColumnElement, Date, Text, cast, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.selection import Selection
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.refusals import in_parts, warn
from sqla_jobs.errors import ArgumentsError, JobsError, UnknownJob
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.change_jobs import hold, update_jobs
from sqla_jobs.rules.wording import plural
from sqla_jobs.tasks.registry import Tasks

_BATCH = 500
_PATIENCE = "1s"
"""How long a person waits for one job that somebody else holds, as a worker does for a moment when it claims it."""
_LOCK_NOT_AVAILABLE = "55P03"
BUSY = "somebody holds or has changed it, or the server refuses it and the log says why"
"""Why any job may be left alone."""

Conditions: TypeAlias = Sequence[ColumnElement[bool]]
Chosen: TypeAlias = Mapping[int, int]
"""Ids of jobs, the newest first, each with its place among all that are changed, from 0 for the oldest."""
States: TypeAlias = tuple[JobState, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """`seen` jobs were looked at and `changed` of them changed, all with ids up to `last`."""

    seen: int = 0
    changed: int = 0
    last: int = -1

    @property
    def left_alone(self) -> int:
        """Those that somebody held or changed meanwhile, or that something forbids to change."""
        return self.seen - self.changed


@dataclass(frozen=True, slots=True)
class Part:
    """Of the jobs that a change would be made of, those that have this in common."""

    task: str
    state: JobState
    error_type: str | None
    """Of the last run."""
    day: str
    """When they ended or are due: `2026-03-29`, or `infinity` where they are parked."""
    jobs: int


class Change:
    """What can be done to jobs. The class says to which of them, and its fields say how."""

    name: ClassVar[str]
    past: ClassVar[str]
    states: ClassVar[States]
    by_default: ClassVar[States]
    """The states that are meant where nobody names one."""
    spares: ClassVar[States] = ()
    """States in which jobs that fit are left alone, and whoever asked is told of them."""
    hides: ClassVar[tuple[str, ...]] = ()
    """Fields of the selection whose values the audit must not keep."""
    left_because: ClassVar[str] = BUSY
    """Why any of them may not be changed."""
    removes: ClassVar[bool] = False
    """Whether the row goes: the audit keeps its task."""

    @property
    def details(self) -> dict[str, Any]:
        """What the audit says of it."""
        return {}

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        """What it sets in each job."""
        return {}

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        """Change those of the chosen jobs that meet the conditions. Returns how many; waits for no locked row.

        The conditions are asked in the statement that locks the jobs, and a job that somebody changed after that
        statement began is left alone.
        """
        after_commit(session, models.Job, models.channel, "")  # the next jobs of their keys may start
        return update_jobs(session, models, [*chosen], conditions, self.values(models, chosen))

    def for_many(self, number: int) -> Change:
        """The same change of `number` jobs."""
        return self

    @classmethod
    def obstacle(cls, session: Session, models: Models[Any], job_id: int) -> str | None:
        """What keeps one job from being changed, and the remedy; None where it is `BUSY`."""
        return None

    @classmethod
    def obstacles(cls, session: Session, models: Models[Any], conditions: Conditions) -> list[tuple[int, str]]:
        """How many of those that meet the conditions each such thing keeps, and the remedy; the others are `BUSY`."""
        return []

    @classmethod
    def allowed(cls, models: Models[Any], *, named: bool) -> ColumnElement[bool]:
        """Whether the state of a job, which is `named` by its id or not, allows the change."""
        is_allowed: ColumnElement[bool] = models.Job.state.in_(cls.states)
        return is_allowed

    @classmethod
    def conditions(cls, models: Models[Any], selection: Selection) -> Conditions:
        """Which of the selected jobs allow it."""
        return [*selection.where(models), cls.allowed(models, named=bool(selection.ids))]

    @classmethod
    def meant(cls, selection: Selection) -> Selection:
        """The same, of the states that are meant where neither ids nor states are given."""
        return selection if selection.ids or selection.states else replace(selection, states=cls.by_default)

    @classmethod
    def count(
        cls, session: Session, models: Models[Any], selection: Selection, *, spared: bool = False
    ) -> dict[JobState, int]:
        """How many of the selected jobs there are in each state that allows it, or that `spares` names."""
        states = cls.spares if spared else cls.states
        allowed = models.Job.state.in_(states) if spared else cls.allowed(models, named=bool(selection.ids))
        counted = select(models.Job.state, func.count()).where(*selection.where(models), allowed)
        found: dict[JobState, int] = {row[0]: row[1] for row in session.execute(counted.group_by(models.Job.state))}
        return {state: found[state] for state in states if state in found}

    @classmethod
    def preview(cls, session: Session, models: Models[Any], selection: Selection) -> list[Part]:
        """How many of the selected jobs allow it, by their task, state, last error and day (in UTC)."""
        job, run = models.Job, models.Run
        of_job = aliased(run)
        # + 0, else the planner may look for the greatest id of all that is of this job, and pass all the others
        last = select(func.max(of_job.id + 0)).where(of_job.job_id == job.id).correlate(job).scalar_subquery()
        error = select(run.error_type).where(run.id == last).correlate(job).scalar_subquery()
        day = cast(cast(func.timezone("UTC", func.coalesce(job.finished_at, job.run_at)), Date), Text)
        chosen = select(job.task, job.state, error.label("error_type"), day.label("day"))
        some = chosen.where(*cls.conditions(models, selection)).subquery("some").c
        kinds = (some.task, some.state, some.error_type, some.day)
        counted = select(*kinds, func.count()).group_by(*kinds).order_by(some.day, func.count().desc(), *kinds)
        return [Part(*row) for row in session.execute(counted, bind_arguments={"mapper": job})]

    @classmethod
    def refusal(cls, session: Session, models: Models[Any], job_id: int) -> str:
        """Say why one job was left alone, as far as the database tells afterwards."""
        state = session.scalar(select(models.Job.state).where(models.Job.id == job_id))
        if state is None:
            why = "somebody has deleted it"
        elif state not in cls.states:
            why = f"it is {state}"
        else:
            why = cls.obstacle(session, models, job_id) or BUSY
        return f"job {job_id} cannot be {cls.past}: {why}"

    @classmethod
    def causes(
        cls, session: Session, models: Models[Any], selection: Selection, left_alone: int
    ) -> list[tuple[int, str]]:
        """Why so many of the selected jobs were left alone: how many of them by what, as it is afterwards."""
        found = cls.obstacles(session, models, cls.conditions(models, selection))
        named = [(min(number, left_alone), said) for number, said in found if number]
        busy = left_alone - sum(number for number, _ in named)
        return [*named, (busy, BUSY)] if busy > 0 else named

    def one(self, it: Changing, job: JobMixin | int) -> bool:
        """Change one job, and wait for its lock: a person waits a second. False: its state does not allow it.

        Raises `UnknownJob`, and `JobsError` where anything else keeps it from being changed.
        """
        session, models = it.session, it.models
        job_id = id_of(session, job)
        try:
            if it.actor is not None:
                session.execute(select(func.set_config("lock_timeout", _PATIENCE, True)))
            task = hold(session, models, job_id)
            if task is None:
                raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
            changed = self.apply(session, models, {job_id: 0}, self.conditions(models, Selection(ids=(job_id,))))
        except DBAPIError as error:
            if it.actor is None or getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            raise JobsError(f"job {job_id} cannot be {self.past}: {BUSY}") from error
        if changed:
            it.record(self.name, f"job {job_id}", **self.details, **({"task": task} if self.removes else {}))
        elif session.scalar(select(models.Job.id).where(models.Job.id == job_id, self.allowed(models, named=True))):
            raise JobsError(self.refusal(session, models, job_id))
        known = session.identity_map.get(session.identity_key(models.Job, job_id))
        if known is not None and (names := [*self.values(models, {})]):
            session.refresh(known, names)
        return bool(changed)

    def in_batches(
        self,
        changing: Callable[[], AbstractContextManager[Changing]],
        selection: Selection,
        *,
        done: Progress = Progress(),
        until: int | None = None,
        most: int | None = None,
        stretch: int | None = None,
    ) -> Iterator[Progress]:
        """Change the selected jobs in order of their ids, each batch in a transaction; tells how far it is.

        It goes on where `done` ended, up to the id `until`, by default the newest: jobs enqueued meanwhile are not
        among them. It ends after `most` changed ones. A batch looks through `stretch` ids at most. It may be left at
        any point: what was told is committed.
        """
        end = -1 if until is None else until
        if until is None:
            with changing() as it:
                end = it.session.scalar(select(func.max(it.models.Job.id))) or -1
        while done.last < end and (most is None or done.changed < most):
            size = _BATCH if most is None else min(_BATCH, most - done.changed)
            reach = end if stretch is None else min(end, done.last + stretch)
            with changing() as it:
                done = self._batch(it, selection, done, reach, size)
            yield done

    def _batch(self, it: Changing, selection: Selection, done: Progress, until: int, size: int) -> Progress:
        """Change up to `size` of the selected jobs with ids up to `until`, beyond those that are `done`."""
        session, models, job = it.session, it.models, it.models.Job
        conditions = self.conditions(models, selection)
        wanted = select(job.id).where(*conditions, job.id > done.last, job.id <= until)
        ids = session.scalars(wanted.order_by(job.id).limit(size)).all()
        places = {job_id: place for place, job_id in enumerate(ids, done.changed)}

        def step(part: Sequence[int]) -> int:
            with session.begin_nested():
                return self.apply(session, models, {job_id: places[job_id] for job_id in part}, conditions)

        # of rivals for one unique key the newest is first
        changed = sum(in_parts(ids[::-1], step, partial(warn, self.name, "job")))
        last = ids[-1] if len(ids) == size else until
        if changed:
            said = {"changed": changed, "up_to": last, **self._chosen(selection, it.tasks), **self.details}
            it.record(f"{self.name} many", plural(changed, "job"), **said)
        return Progress(done.seen + len(ids), done.changed + changed, last)

    def _chosen(self, selection: Selection, tasks: Tasks[Any]) -> dict[str, Any]:
        """Which jobs were meant, as the audit keeps it. An argument may be sensitive in some task."""
        if selection.ids:
            return {"jobs": [*map(str, selection.ids)]}
        names = {*selection.args, *selection.results}
        is_sensitive = names and any(names & sensitive for sensitive in tasks.sensitive().values())
        return {"filter": selection.described(hidden={*self.hides, *(("args", "results") if is_sensitive else ())})}


def id_of(session: Session, job: JobMixin | int) -> int:
    """The id of a job, which is flushed if it has none yet. Raises `ArgumentsError` for what is no job."""
    if isinstance(job, int):
        return job
    if not isinstance(job, JobMixin):
        raise ArgumentsError(f"{job!r:.60} is neither a job nor the id of one, an integer")
    if instance_state(job).pending:
        session.flush()
    return job.id


def counted(by_state: Mapping[JobState, int]) -> str:
    """300 failed, 9 cancelled jobs."""
    counts = ", ".join(f"{count:,} {state}" for state, count in by_state.items())
    return f"{counts} job{'' if sum(by_state.values()) == 1 else 's'}"
