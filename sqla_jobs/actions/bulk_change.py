"""A change to one job, or to many jobs in batches, with a short transaction for each batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.selection import Selection
from sqla_jobs.database.commits import savepoint
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.refusals import blames_a_row, in_parts, warn
from sqla_jobs.database.sharding import known_row
from sqla_jobs.errors import ArgumentsError, JobsError, UnknownJob
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.row import id_in
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.change_jobs import hold, hold_all, update_jobs
from sqla_jobs.rules.value_checks import check_id
from sqla_jobs.rules.wording import plural
from sqla_jobs.tasks.registry import Tasks

_BATCH = 500
_NAMED = 5
"""The number of ids of jobs left alone that a message names."""
_PATIENCE = "1s"
"""The maximum wait for the lock on one job. A worker that claims the job holds this lock briefly."""
_LOCK_NOT_AVAILABLE = "55P03"
Conditions: TypeAlias = Sequence[sa.ColumnElement[bool]]
Chosen: TypeAlias = Mapping[int, int]
"""The ids of the jobs to change, newest first, each with its number among all changed jobs: 0 for the oldest."""
States: TypeAlias = tuple[JobState, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """How many jobs a change was meant for, and what became of them. It is true if any of them has been changed."""

    seen: int = 0
    """The number of jobs that the change was meant for."""
    changed: int = 0
    """The number of jobs that have been changed."""
    left: tuple[int, ...] = ()
    """The ids of the jobs left alone: their state forbids the change, somebody holds them, or something needs them."""

    def __bool__(self) -> bool:
        return self.changed > 0

    def and_then(self, ids: Collection[int], changed: Collection[int]) -> Self:
        """Return the result after `ids` have been looked at, too, of which `changed` have been changed."""
        left = (*self.left, *sorted({*ids}.difference(changed)))
        return replace(self, seen=self.seen + len(ids), changed=self.changed + len(changed), left=left)


@dataclass(frozen=True, slots=True)
class Progress(Changed):
    """The result of a change so far, which has looked at all jobs up to the id `last`."""

    last: int = -1


def left_alone(done: Changed) -> str:
    """Return a text such as `12 left alone, first: 17, 19`; an empty text if there is none."""
    number = done.seen - done.changed
    first = ", ".join(map(str, done.left[:_NAMED]))
    return f"{number:,} left alone, first: {first}" if number else ""


class Change:
    """A kind of change. The class defines which jobs allow the change, and its fields are the change's parameters."""

    name: ClassVar[str]
    past: ClassVar[str]
    states: ClassVar[States]
    by_default: ClassVar[States]
    """The states that apply if a selection has no states."""
    hides: ClassVar[tuple[str, ...]] = ()
    """Fields of the selection whose values the audit log must not store."""
    sees: ClassVar[States] = ()
    """Selected jobs in these states count as left alone, although their state forbids the change."""
    removes: ClassVar[bool] = False
    """True if the change deletes the row. The audit log then keeps the job's task."""

    @property
    def details(self) -> dict[str, Any]:
        """Return the details for the audit log."""
        return {}

    def values(self, models: Models[Any], chosen: Chosen) -> dict[str, Any]:
        """Return the columns that the change sets in each job."""
        return {}

    def apply(self, session: Session, models: Models[Any], chosen: Chosen, conditions: Conditions) -> Sequence[int]:
        """Change the chosen jobs that meet the conditions, and return their ids.

        Never wait for a locked row. The statement that locks the jobs checks the conditions. A job that has been
        changed since the statement began is skipped.
        """
        after_commit(session, models.Job, models.channel, "")  # the next jobs of the same keys may start
        return update_jobs(session, models, [*chosen], conditions, self.values(models, chosen))

    def for_jobs(self, selection: Selection, number: int) -> Change:
        """Return the variant of this change for a selection of `number` jobs."""
        return self

    @classmethod
    def allowed(cls, models: Models[Any], selection: Selection) -> sa.ColumnElement[bool]:
        """Return the condition under which a selected job allows the change."""
        is_allowed: sa.ColumnElement[bool] = models.Job.state.in_(cls.states)
        return is_allowed

    @classmethod
    def conditions(cls, models: Models[Any], selection: Selection) -> Conditions:
        """Return the conditions under which a job is selected and its state allows the change."""
        return [*selection.where(models), cls.allowed(models, selection)]

    @classmethod
    def meant(cls, selection: Selection) -> Selection:
        """Return the selection to use. A selection with neither ids nor states gets the class's default states."""
        return selection if selection.ids or selection.states else replace(selection, states=cls.by_default)

    @classmethod
    def count(cls, session: Session, models: Models[Any], selection: Selection) -> dict[JobState, int]:
        """Return the number of selected jobs in each state that allows the change."""
        counted = sa.select(models.Job.state, sa.func.count()).where(*cls.conditions(models, selection))
        found: dict[JobState, int] = {row[0]: row[1] for row in session.execute(counted.group_by(models.Job.state))}
        return {state: found[state] for state in cls.states if state in found}

    def one(self, it: Changing, job: JobMixin | int) -> Changed:
        """Change one job, unless its state forbids it, or something needs the job as it is.

        Wait for the lock on the job, but at most a second if a person makes the change. Raises `UnknownJob`, and
        `JobsError` if somebody holds the job for longer.
        """
        session, models = it.session, it.models
        session.flush()  # errors about the caller's own rows are raised here, unchanged
        job_id, done = id_of(session, job), list[int]()
        with short_waits(it, f"job {job_id} cannot be {self.past}"):
            held = hold(session, models, job_id)
            if held is None:
                raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
            try:
                with savepoint(session, models.Job):
                    done += self.apply(session, models, {job_id: 0}, self.conditions(models, Selection(ids=(job_id,))))
            except Exception as error:
                if not blames_a_row(error):
                    raise
                warn(self.name, "job", job_id, error)
        if done:
            it.record(self.name, f"job {job_id}", **self.details, **({"task": held.task} if self.removes else {}))
        known = known_row(session, models.Job, job_id)
        if known is not None and not (done and self.removes):
            session.refresh(known)
        return Changed().and_then([job_id], done)

    def all(self, it: Changing, selection: Selection, *, waits: bool = False) -> Changed:
        """Change the selected jobs in the caller's transaction.

        With `waits`, wait for jobs that somebody holds; by default, leave them alone.
        """
        session, models, job = it.session, it.models, it.models.Job
        session.flush()
        meant = self.meant(selection)
        done = Progress()
        with short_waits(it, f"the jobs cannot be {self.past}"):
            if waits:
                hold_all(session, models, self.conditions(models, meant))
            change = self.for_jobs(meant, sum(self.count(session, models, meant).values()))
            for progress in change.in_batches(lambda: nullcontext(it), meant):
                done = progress
        if done:
            for row in [row for row in session if isinstance(row, job) and row not in session.new]:
                session.expire(row)
        return Changed(done.seen, done.changed, done.left)

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
        seen = [*selection.where(models), sa.or_(self.allowed(models, selection), job.state.in_(self.sees))]
        wanted = sa.select(job.id).where(*seen, job.id > done.last, job.id <= until)
        ids = session.scalars(wanted.order_by(job.id).limit(size)).all()
        places = {job_id: place for place, job_id in enumerate(ids, done.changed)}

        def step(part: Sequence[int]) -> Sequence[int]:
            with savepoint(session, job):
                return self.apply(session, models, {job_id: places[job_id] for job_id in part}, conditions)

        # among rivals for one unique key, the newest job comes first
        changed = [one for part in in_parts(ids[::-1], step, partial(warn, self.name, "job")) for one in part]
        last = ids[-1] if len(ids) == size else until
        if changed:
            details = {"changed": len(changed), "up_to": last, **self._chosen(selection, it.tasks), **self.details}
            it.record(f"{self.name} many", plural(len(changed), "job"), **details)
        return replace(done.and_then(ids, changed), last=last)

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
        raise JobsError(f"{impossible}: somebody holds it; try again") from error


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
