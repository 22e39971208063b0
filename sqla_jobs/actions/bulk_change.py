"""A change to one job, or to many jobs in batches, with a short transaction for each batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.selection import Selection
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.refusals import in_parts, warn
from sqla_jobs.database.sharding import known_row
from sqla_jobs.errors import ArgumentsError, JobsError, UnknownJob
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.row import id_in
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.change_jobs import hold, update_jobs
from sqla_jobs.queries.expressions import last_run_of
from sqla_jobs.rules.value_checks import check_id
from sqla_jobs.rules.wording import plural
from sqla_jobs.tasks.registry import Tasks

_BATCH = 500
_PATIENCE = "1s"
"""The maximum wait for the lock on one job. A worker that claims the job holds this lock briefly."""
_LOCK_NOT_AVAILABLE = "55P03"
BUSY = "somebody holds or has changed it, or the server refuses it and the log says why"
"""The reason for skipping a job if there is no other obstacle."""

Conditions: TypeAlias = Sequence[sa.ColumnElement[bool]]
Chosen: TypeAlias = Mapping[int, int]
"""The ids of the jobs to change, newest first, each with its number among all changed jobs: 0 for the oldest."""
States: TypeAlias = tuple[JobState, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a change, up to the id `last`. Of the `seen` jobs, `changed` have been changed."""

    seen: int = 0
    changed: int = 0
    last: int = -1

    @property
    def left_alone(self) -> int:
        """The number of skipped jobs: locked, changed in the meantime, or held back by an obstacle."""
        return self.seen - self.changed


@dataclass(frozen=True, slots=True)
class Part:
    """Jobs that a change would affect, and that have the same task, state, error type and day."""

    task: str
    state: JobState
    error_type: str | None
    """The error type of each job's last run."""
    day: str
    """The day on which the jobs ended or are due: `2026-03-29`, or `infinity` for parked jobs."""
    jobs: int


class Change:
    """A kind of change. The class defines which jobs allow the change, and its fields are the change's parameters."""

    name: ClassVar[str]
    past: ClassVar[str]
    states: ClassVar[States]
    by_default: ClassVar[States]
    """The states that apply if a selection has no states."""
    spares: ClassVar[States] = ()
    """Selected jobs in these states are skipped. A message gives their number."""
    hides: ClassVar[tuple[str, ...]] = ()
    """Fields of the selection whose values the audit log must not store."""
    left_because: ClassVar[str] = BUSY
    """The text that covers every obstacle to this kind of change."""
    otherwise: ClassVar[str] = BUSY
    """The reason for skipping jobs without an obstacle."""
    removes: ClassVar[bool] = False
    """True if the change deletes the row. The audit log then keeps the job's task."""

    @property
    def details(self) -> dict[str, Any]:
        """Return the details for the audit log."""
        return {}

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        """Return the columns that the change sets in each job."""
        return {}

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> int:
        """Change the chosen jobs that meet the conditions.

        Return the number of changed jobs. Never wait for a locked row. The statement that locks the jobs checks the
        conditions. A job that has been changed since the statement began is skipped.
        """
        after_commit(session, models.Job, models.channel, "")  # the next jobs of the same keys may start
        return update_jobs(session, models, [*chosen], conditions, self.values(models, chosen))

    def for_many(self, number: int) -> Change:
        """Return the variant of this change for `number` jobs."""
        return self

    @classmethod
    def obstacle(cls, session: Session, models: Models[Any], job_id: int) -> str | None:
        """Return the obstacle to changing one job, and the remedy; None if the reason is `BUSY`."""
        return None

    @classmethod
    def obstacles(cls, session: Session, models: Models[Any], conditions: Conditions) -> list[tuple[int, str]]:
        """Return the obstacles to changing jobs, with their remedies, each with the number of jobs that it affects.

        Only jobs that meet the conditions are counted. For all other jobs the reason is `otherwise`.
        """
        return []

    @classmethod
    def allowed(cls, models: Models[Any], *, named: bool) -> sa.ColumnElement[bool]:
        """Return the condition under which a job allows the change. `named` is True if a person gave the job's id."""
        is_allowed: sa.ColumnElement[bool] = models.Job.state.in_(cls.states)
        return is_allowed

    @classmethod
    def conditions(cls, models: Models[Any], selection: Selection) -> Conditions:
        """Return the conditions under which a job is selected and its state allows the change."""
        return [*selection.where(models), cls.allowed(models, named=bool(selection.ids))]

    @classmethod
    def meant(cls, selection: Selection) -> Selection:
        """Return the selection to use. A selection with neither ids nor states gets the class's default states."""
        return selection if selection.ids or selection.states else replace(selection, states=cls.by_default)

    @classmethod
    def count(
        cls, session: Session, models: Models[Any], selection: Selection, *, spared: bool = False
    ) -> dict[JobState, int]:
        """Return the number of selected jobs in each state that allows the change.

        With `spared`, count the jobs in the states `spares` instead.
        """
        states = cls.spares if spared else cls.states
        allowed = models.Job.state.in_(states) if spared else cls.allowed(models, named=bool(selection.ids))
        counted = sa.select(models.Job.state, sa.func.count()).where(*selection.where(models), allowed)
        found: dict[JobState, int] = {row[0]: row[1] for row in session.execute(counted.group_by(models.Job.state))}
        return {state: found[state] for state in states if state in found}

    @classmethod
    def preview(cls, session: Session, models: Models[Any], selection: Selection) -> list[Part]:
        """Return the number of selected jobs that allow the change, by task, state, last error and day (in UTC)."""
        job, run = models.Job, models.Run
        error = sa.select(run.error_type).where(run.id == last_run_of(run, job.id)).correlate(job).scalar_subquery()
        day = sa.cast(sa.cast(sa.func.timezone("UTC", sa.func.coalesce(job.finished_at, job.run_at)), sa.Date), sa.Text)
        chosen = sa.select(job.task, job.state, error.label("error_type"), day.label("day"))
        some = chosen.where(*cls.conditions(models, selection)).subquery("some").c
        kinds = (some.task, some.state, some.error_type, some.day)
        counted = sa.select(*kinds, sa.func.count()).group_by(*kinds).order_by(some.day, sa.func.count().desc(), *kinds)
        return [Part(*row) for row in session.execute(counted, bind_arguments={"mapper": job})]

    @classmethod
    def refusal(cls, session: Session, models: Models[Any], job_id: int) -> str:
        """Return the error message about one skipped job. The reason is read from the database after the change."""
        state = session.scalar(sa.select(models.Job.state).where(models.Job.id == job_id))
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
        """Return the reasons for skipping jobs, each with the number of jobs.

        Both are read from the database after the change.
        """
        found = cls.obstacles(session, models, cls.conditions(models, selection))
        named = [(min(number, left_alone), said) for number, said in found if number]
        busy = left_alone - sum(number for number, _ in named)
        return [*named, (busy, cls.otherwise)] if busy > 0 else named

    def one(self, it: Changing, job: JobMixin | int) -> bool:
        """Change one job. Return False if its state forbids the change.

        Wait for the lock on the job, but at most a second if a person makes the change. Raises `UnknownJob`, and
        `JobsError` for any other obstacle.
        """
        session, models = it.session, it.models
        job_id = id_of(session, job)
        with short_waits(it, f"job {job_id} cannot be {self.past}"):
            held = hold(session, models, job_id)
            if held is None:
                raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
            changed = self.apply(session, models, {job_id: 0}, self.conditions(models, Selection(ids=(job_id,))))
        if changed:
            it.record(self.name, f"job {job_id}", **self.details, **({"task": held.task} if self.removes else {}))
        elif session.scalar(sa.select(models.Job.id).where(models.Job.id == job_id, self.allowed(models, named=True))):
            raise JobsError(self.refusal(session, models, job_id))
        known = known_row(session, models.Job, job_id)
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
        """Change the selected jobs in the order of their ids, each batch in its own transaction.

        Yield the progress after each batch. The change continues after `done`, and ends at the id `until`. By default,
        that is the newest id, so jobs enqueued meanwhile are left out. The change also ends after `most` changed jobs.
        A batch covers at most `stretch` ids. The caller may stop at any point: all yielded progress is committed.
        """
        end = -1 if until is None else until
        if until is None:
            with changing() as it:
                end = it.session.scalar(sa.select(sa.func.max(it.models.Job.id))) or -1
        while done.last < end and (most is None or done.changed < most):
            size = _BATCH if most is None else min(_BATCH, most - done.changed)
            reach = end if stretch is None else min(end, done.last + stretch)
            with changing() as it:
                done = self._batch(it, selection, done, reach, size)
            yield done

    def _batch(self, it: Changing, selection: Selection, done: Progress, until: int, size: int) -> Progress:
        """Change up to `size` more of the selected jobs, continuing after `done` and stopping at id `until`."""
        session, models, job = it.session, it.models, it.models.Job
        conditions = self.conditions(models, selection)
        wanted = sa.select(job.id).where(*conditions, job.id > done.last, job.id <= until)
        ids = session.scalars(wanted.order_by(job.id).limit(size)).all()
        places = {job_id: place for place, job_id in enumerate(ids, done.changed)}

        def step(part: Sequence[int]) -> int:
            with session.begin_nested():
                return self.apply(session, models, {job_id: places[job_id] for job_id in part}, conditions)

        # among rivals for one unique key, the newest job comes first
        changed = sum(in_parts(ids[::-1], step, partial(warn, self.name, "job")))
        last = ids[-1] if len(ids) == size else until
        if changed:
            said = {"changed": changed, "up_to": last, **self._chosen(selection, it.tasks), **self.details}
            it.record(f"{self.name} many", plural(changed, "job"), **said)
        return Progress(done.seen + len(ids), done.changed + changed, last)

    def _chosen(self, selection: Selection, tasks: Tasks[Any]) -> dict[str, Any]:
        """Return the selection for the audit log, without `args` and `results` if a name in them is sensitive."""
        if selection.ids:
            return {"jobs": [*map(str, selection.ids)]}
        names = {*selection.args, *selection.results}
        is_sensitive = names and any(names & sensitive for sensitive in tasks.sensitive().values())
        return {"filter": selection.described(hidden={*self.hides, *(("args", "results") if is_sensitive else ())})}


@contextmanager
def short_waits(it: Changing, impossible: str) -> Generator[None]:
    """Wait at most a second for the lock on each job if a person makes the change.

    Raises `JobsError`, with `impossible` and the reason, if a lock is not free within that second.
    """
    try:
        if it.actor is not None:
            it.session.execute(sa.select(sa.func.set_config("lock_timeout", _PATIENCE, True)))
        yield
    except DBAPIError as error:
        if it.actor is None or getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise JobsError(f"{impossible}: {BUSY}") from error


def id_of(session: Session, job: JobMixin | int) -> int:
    """Return the id of a job, also of one whose session is closed. Flush the job if it has none yet.

    Raises `ArgumentsError` for any other object, and for a job that is not in the database.
    """
    if isinstance(job, int):
        return check_id(job)
    if not isinstance(job, JobMixin):
        raise ArgumentsError(f"{job!r:.60} is neither a job nor the id of one, an integer")
    if (job_id := id_in(session, job)) is None:
        raise ArgumentsError(f"{job!r:.100} is not in the database: add it to the session first")
    return job_id


def counted(by_state: Mapping[JobState, int]) -> str:
    """Return a text such as `300 failed, 9 cancelled jobs`."""
    counts = ", ".join(f"{count:,} {state}" for state, count in by_state.items())
    return f"{counts} job{'' if sum(by_state.values()) == 1 else 's'}"
