"""Changing many jobs: in batches of one short transaction each, past whatever somebody else holds or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Date, Text, cast, func, or_, select
from sqlalchemy.orm import Session, aliased

from sqla_jobs.actions.selection import Selection
from sqla_jobs.database.binding import Binding
from sqla_jobs.database.refusals import in_parts, warn
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.tasks.registry import Tasks

_BATCH = 500
BUSY = "somebody holds or has changed it, or the server refuses it and the log says why"
"""Why any job may be left alone."""

Conditions: TypeAlias = Sequence[ColumnElement[bool]]
Chosen: TypeAlias = Mapping[int, int]
"""Ids of jobs, the newest first, each with its place among all that are changed, from 0 for the oldest."""
Apply: TypeAlias = Callable[[Session, Models[Any], Chosen, Conditions], int]
Obstacle: TypeAlias = Callable[[Session, Models[Any], int], str | None]
Obstacles: TypeAlias = Callable[[Session, Models[Any], Conditions], "list[tuple[int, str]]"]


def _no_obstacle(session: Session, models: Models[Any], job_id: int) -> str | None:
    return None


def _no_obstacles(session: Session, models: Models[Any], conditions: Conditions) -> list[tuple[int, str]]:
    return []


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


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be done to many jobs in `states`."""

    name: str
    states: tuple[JobState, ...]
    by_default: tuple[JobState, ...]
    """The states that are meant where nobody names one."""
    spares: tuple[JobState, ...] = ()
    """States in which jobs that fit are left alone, and whoever asked is told of them."""
    hides: tuple[str, ...] = ()
    """Fields of the selection whose values the audit must not keep."""
    left_because: str = BUSY
    """Why any of them may not be changed."""
    obstacle: Obstacle = _no_obstacle
    """What keeps one of them, given by its id, from being changed, and the remedy; None where it is `BUSY`."""
    obstacles: Obstacles = _no_obstacles
    """How many of those that meet the conditions each such thing keeps, and the remedy; the others are `BUSY`."""
    also: Callable[[Models[Any]], ColumnElement[bool]] | None = None
    """Jobs of other states that allow it where ids name them."""

    def meant(self, selection: Selection) -> Selection:
        """The same, of the states that are meant where neither ids nor states are given."""
        return selection if selection.ids or selection.states else replace(selection, states=self.by_default)

    def count(self, session: Session, models: Models[Any], selection: Selection) -> dict[JobState, int]:
        """How many of the selected jobs there are in each state that allows it."""
        job = models.Job
        counted = select(job.state, func.count()).where(*self.conditions(models, selection)).group_by(job.state)
        found: dict[JobState, int] = {row[0]: row[1] for row in session.execute(counted)}
        return {state: found[state] for state in self.states if state in found}

    def count_spared(self, session: Session, models: Models[Any], selection: Selection) -> dict[JobState, int]:
        """How many of the selected jobs there are in each state that `spares` names."""
        return replace(self, states=self.spares).count(session, models, selection)

    def preview(self, session: Session, models: Models[Any], selection: Selection) -> list[Part]:
        """How many of the selected jobs allow it, by their task, state, last error and day (in UTC)."""
        job, run = models.Job, models.Run
        of_job = aliased(run)
        # + 0, else the planner may look for the greatest id of all that is of this job, and pass all the others
        last = select(func.max(of_job.id + 0)).where(of_job.job_id == job.id).correlate(job).scalar_subquery()
        error = select(run.error_type).where(run.id == last).correlate(job).scalar_subquery()
        day = cast(cast(func.timezone("UTC", func.coalesce(job.finished_at, job.run_at)), Date), Text)
        chosen = select(job.task, job.state, error.label("error_type"), day.label("day"))
        some = chosen.where(*self.conditions(models, selection)).subquery("some").c
        kinds = (some.task, some.state, some.error_type, some.day)
        counted = select(*kinds, func.count()).group_by(*kinds).order_by(some.day, func.count().desc(), *kinds)
        return [Part(*row) for row in session.execute(counted, bind_arguments={"mapper": job})]

    def hidden(self, selection: Selection, tasks: Tasks[Any]) -> set[str]:
        """The fields of the selection that the audit does not keep. An argument may be sensitive in some task."""
        names = {*selection.args, *selection.results}
        is_sensitive = names and any(names & sensitive for sensitive in tasks.sensitive().values())
        return {*self.hides, *(("args", "results") if is_sensitive else ())}

    def reason(self, session: Session, models: Models[Any], job_id: int) -> str:
        """Why one job was left alone, as far as the database tells afterwards."""
        state = session.scalar(select(models.Job.state).where(models.Job.id == job_id))
        if state is None:
            return "somebody has deleted it"
        if state not in self.states:
            return f"it is {state} now"
        return self.obstacle(session, models, job_id) or BUSY

    def causes(
        self, session: Session, models: Models[Any], selection: Selection, left_alone: int
    ) -> list[tuple[int, str]]:
        """Why so many of the selected jobs were left alone: how many of them by what, as it is afterwards."""
        found = self.obstacles(session, models, self.conditions(models, selection))
        named = [(min(number, left_alone), said) for number, said in found if number]
        busy = left_alone - sum(number for number, _ in named)
        return [*named, (busy, BUSY)] if busy > 0 else named

    def conditions(self, models: Models[Any], selection: Selection) -> Conditions:
        """Which of the selected jobs allow it."""
        allowed = models.Job.state.in_(self.states)
        if self.also is not None and selection.ids:
            allowed = or_(allowed, self.also(models))
        return [*selection.where(models), allowed]


@dataclass(frozen=True, slots=True)
class Change:
    """One of a kind: `apply` makes it of those of the given ids that meet the conditions.

    It returns how many those were, and waits for no locked row. The conditions are asked in the statement that locks
    the jobs, and a job that somebody changed after that statement began is left alone.
    """

    kind: Kind
    apply: Apply
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the audit says of it."""

    def in_batches(
        self,
        binding: Binding,
        models: Models[Any],
        selection: Selection,
        *,
        most: int | None = None,
        record: Callable[[Session, int], None] = lambda session, changed: None,
    ) -> Iterator[Progress]:
        """Change the selected jobs in order of their ids, each batch in a transaction; tells how far it is.

        Jobs enqueued meanwhile are not among them. It ends after `most` changed ones. It may be left at any point:
        what was told is committed. `record` is called in the transaction of a batch with the number of those that
        were changed.
        """
        done, last = Progress(0, 0), -1
        with binding.transaction() as session:
            end = session.scalar(select(func.max(models.Job.id))) or -1
        while most is None or done.changed < most:
            size = _BATCH if most is None else min(_BATCH, most - done.changed)
            with binding.transaction() as session:
                last, seen, changed = self.batch(
                    session, models, selection, after=last, until=end, size=size, before=done.changed
                )
                if changed:
                    record(session, changed)
            if not seen:
                return
            done = Progress(done.seen + seen, done.changed + changed)
            yield done

    def batch(
        self,
        session: Session,
        models: Models[Any],
        selection: Selection,
        *,
        after: int,
        until: int,
        size: int = _BATCH,
        before: int = 0,
    ) -> tuple[int, int, int]:
        """Change up to `size` of the selected jobs with ids in (after, until], in the caller's transaction.

        `before` is how many were changed already. Returns the id up to which it is done, how many were looked at, and
        how many of them changed.
        """
        job, conditions = models.Job, self.kind.conditions(models, selection)
        wanted = [*conditions, job.id > after, job.id <= until]
        ids = session.scalars(select(job.id).where(*wanted).order_by(job.id).limit(size)).all()
        places = {job_id: place for place, job_id in enumerate(ids, before)}

        def step(part: Sequence[int]) -> int:
            with session.begin_nested():
                return self.apply(session, models, {job_id: places[job_id] for job_id in part}, conditions)

        # of rivals for one unique key the newest is first
        changed = sum(in_parts(ids[::-1], step, partial(warn, self.kind.name, "job")))
        return (ids[-1] if len(ids) == size else until), len(ids), changed


def counted(by_state: Mapping[JobState, int]) -> str:
    """300 failed, 9 cancelled jobs."""
    counts = ", ".join(f"{count:,} {state}" for state, count in by_state.items())
    return f"{counts} job{'' if sum(by_state.values()) == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Progress:
    """`seen` jobs were looked at, and `changed` of them changed."""

    seen: int
    changed: int

    @property
    def left_alone(self) -> int:
        """Those that somebody held or changed meanwhile, or that something forbids to change."""
        return self.seen - self.changed
