"""Which jobs a person means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select

from sqla_jobs.mapping import Models
from sqla_jobs.models import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """All jobs that fit everything given; a tuple means any of its members, and an empty one says nothing.

    `args` are arguments as they are stored, of which a job may have more; `error` is part of the error of
    a job's last run, whatever its case; `before` and `after` are about `created_at`. Jobs of `not_tasks`
    never fit.
    """

    ids: tuple[int, ...] = ()
    states: tuple[JobState, ...] = ()
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None
    before: datetime | None = None
    after: datetime | None = None
    schedules: tuple[int, ...] = ()
    unique_keys: tuple[str, ...] = ()
    not_tasks: tuple[str, ...] = ()

    @property
    def is_everything(self) -> bool:
        """Whether nothing was given."""
        return self == Selection()

    def where(self, models: Models[Any]) -> list[ColumnElement[bool]]:
        """The conditions on `models.Job`."""
        job = models.Job
        found: list[ColumnElement[bool]] = []
        columns: list[tuple[Any, tuple[Any, ...]]] = [
            (job.id, self.ids),
            (job.state, self.states),
            (job.task, self.tasks),
            (job.queue, self.queues),
            (job.schedule_id, self.schedules),
            (job.unique_key, self.unique_keys),
        ]
        found += [column.in_(values) for column, values in columns if values]
        if self.not_tasks:
            found.append(job.task.not_in(self.not_tasks))
        if self.args:
            found.append(job.args.contains(dict(self.args)))
        if self.error is not None:
            found.append(_last_error_contains(models, self.error))
        if self.before is not None:
            found.append(job.created_at < self.before)
        if self.after is not None:
            found.append(job.created_at >= self.after)
        return found


def _last_error_contains(models: Models[Any], words: str) -> ColumnElement[bool]:
    job, run = models.Job, models.Run
    last = select(func.max(run.id)).where(run.job_id == job.id).correlate(job).scalar_subquery()
    named = or_(run.error.icontains(words, autoescape=True), run.error_type.icontains(words, autoescape=True))
    return select(run.id).where(run.id == last, named).exists()
