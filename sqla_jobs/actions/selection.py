"""A person's selection of jobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.json_search import holds
from sqla_jobs.rules.redaction import HIDDEN
from sqla_jobs.rules.value_checks import check_id, check_json, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """All jobs that match every given field.

    A tuple matches any of its members, and an empty tuple matches any value. `args` and `results` map names to stored
    values. They match at any depth of the arguments, or of one run's result, even within arrays. `unsearched` maps a
    task to those of its arguments that are not searched. `error` is a part of the error of a job's last run, matched
    case-insensitively. `before` and `after` restrict `created_at`, and `ended_before` and `ended_after` restrict
    `finished_at`; each is a datetime, or a timedelta before now. Jobs of the tasks in `not_tasks` never match. Raises
    `ArgumentsError` for an invalid value.
    """

    ids: tuple[int, ...] = ()
    states: tuple[JobState, ...] = ()
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None
    before: datetime | timedelta | None = None
    after: datetime | timedelta | None = None
    ended_before: datetime | timedelta | None = None
    ended_after: datetime | timedelta | None = None
    schedules: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    unique_keys: tuple[str, ...] = ()
    not_tasks: tuple[str, ...] = ()
    unsearched: Mapping[str, Collection[str]] = field(default_factory=dict[str, Collection[str]])

    def __post_init__(self) -> None:
        named = {"task": self.tasks, "queue": self.queues, "key": self.unique_keys, "error": (self.error or "",)}
        for name, texts in named.items():
            for text in texts:
                check_text(name, text)
        check_json("args", dict(self.args))
        check_json("results", dict(self.results))
        for one in (*self.ids, *self.schedules, *self.batches):
            check_id(one)

    @property
    def is_everything(self) -> bool:
        """True if no field was given."""
        return self == Selection()

    @property
    def half_searched(self) -> list[str]:
        """The tasks whose jobs may be missing from the matches, since sensitive values are not searched."""
        names = {*self.unsearched, *self.not_tasks}
        return sorted(names.intersection(self.tasks) if self.tasks else names)

    def described(self, *, hidden: Collection[str]) -> dict[str, Any]:
        """Return the given fields for the audit log, without the values of the fields in `hidden`."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _RESTRICTIONS}
        return {name: HIDDEN if name in hidden else _plain(value) for name, value in given.items() if value}

    def where(self, models: Models[Any]) -> list[sa.ColumnElement[bool]]:
        """Return the conditions on `models.Job`."""
        job = models.Job
        found: list[sa.ColumnElement[bool]] = []
        columns: list[tuple[Any, tuple[Any, ...]]] = [
            (job.id, self.ids),
            (job.state, self.states),
            (job.task, self.tasks),
            (job.queue, self.queues),
            (job.schedule_id, self.schedules),
            (job.batch_id, self.batches),
            (job.unique_key, self.unique_keys),
        ]
        found += [column.in_(values) for column, values in columns if values]
        if self.not_tasks:
            found.append(job.task.not_in(self.not_tasks))
        if self.args:
            searched = without(job.args, job.task, self.unsearched)
            found += [holds(searched, name, value) for name, value in self.args.items()]
        if self.results:
            found.append(_has_result(models, self.results))
        if self.error is not None:
            found.append(_last_error_contains(models, self.error))
        if self.before is not None:
            found.append(job.created_at < by_server(self.before))
        if self.after is not None:
            found.append(job.created_at >= by_server(self.after))
        if self.ended_before is not None:
            found.append(job.finished_at < by_server(self.ended_before))
        if self.ended_after is not None:
            found.append(job.finished_at >= by_server(self.ended_after))
        return found


_RESTRICTIONS = ("not_tasks", "unsearched")


def searching(sensitive: Callable[[], Mapping[str, Collection[str]]], **given: Any) -> Selection:
    """Return a `Selection` of a person, which searches no sensitive arguments: a search could guess them.

    A result or a unique key may hold one, so a search by these leaves out whole tasks. `sensitive` returns the
    arguments by task. It is called only if the selection searches for values, since it loads all tasks.
    """
    by_args, may_repeat = given.get("args"), given.get("results") or given.get("unique_keys")
    hidden = sensitive() if by_args or may_repeat else {}
    return Selection(**given, unsearched=hidden if by_args else {}, not_tasks=tuple(hidden) if may_repeat else ())


def read_value(text: str) -> Any:
    """Return the value that a person searches for: JSON, or else plain text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(word: str) -> Any:
    raise ValueError(word)


def without(args: Any, task: Any, unsearched: Mapping[str, Collection[str]]) -> Any:
    """Return a task's arguments without the unsearched ones.

    If the task has unsearched ones, arguments that are not an object become NULL.
    """
    if not unsearched:
        return args
    names = sa.case({name: sa.cast(sorted(names), sa.ARRAY(sa.Text)) for name, names in unsearched.items()}, value=task)
    return sa.case(
        (task.not_in(list(unsearched)), args),
        (sa.func.jsonb_typeof(args) == "object", args.op("-", return_type=JSONB())(names)),
    )


def _has_result(models: Models[Any], results: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    job, run = models.Job, models.Run
    conditions = [holds(run.result, name, value) for name, value in results.items()]
    return sa.select(run.id).where(run.job_id == job.id, *conditions).exists()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, timedelta) else value


def by_server(given: datetime | timedelta) -> Any:
    """Return a time that is given as a datetime, or as a timedelta before now by the server's clock."""
    return given if isinstance(given, datetime) else sa.func.statement_timestamp() - given


def _last_error_contains(models: Models[Any], words: str) -> sa.ColumnElement[bool]:
    job, run = models.Job, models.Run
    of_job = aliased(run)
    last = sa.select(sa.func.max(of_job.id)).where(of_job.job_id == job.id).correlate(job).scalar_subquery()
    named = sa.or_(run.error.icontains(words, autoescape=True), run.error_type.icontains(words, autoescape=True))
    return sa.select(run.id).where(run.id == last, named).exists()
