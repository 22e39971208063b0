"""The selection of jobs by what is known of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, aliased

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.json_search import holds
from sqla_jobs.rules.redaction import HIDDEN
from sqla_jobs.rules.value_checks import check_id, check_json, check_text, read_id, read_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """All jobs that match every given field.

    A tuple matches any of its members, and an empty tuple matches any value. `args` and `results` map names to stored
    values. They match at any depth of the arguments, or of one run's result, even within arrays. `unsearched` maps a
    task to those of its arguments that are not searched. `error` is a part of the error of a job's last run, matched
    case-insensitively, and `text` is a part of its arguments, headers, unique key, progress, or of a run's result or
    error. `before` and `after` restrict `created_at`, and `ended_before` and `ended_after` restrict
    `finished_at`; each is a datetime, or a timedelta before now. Jobs of the tasks in `not_tasks` never match. Raises
    `ArgumentsError` for an invalid value.
    """

    ids: tuple[int, ...] = ()
    states: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None
    text: str | None = None
    created_before: datetime | timedelta | None = None
    created_after: datetime | timedelta | None = None
    ended_before: datetime | timedelta | None = None
    ended_after: datetime | timedelta | None = None
    schedules: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    unique_keys: tuple[str, ...] = ()
    not_tasks: tuple[str, ...] = ()
    unsearched: Mapping[str, Collection[str]] = field(default_factory=dict[str, Collection[str]])

    def __post_init__(self) -> None:
        named = {
            "task": self.tasks,
            "queue": self.queues,
            "key": self.unique_keys,
            "error": (self.error or "",),
            "text": (self.text or "",),
        }
        for name, texts in named.items():
            for text in texts:
                check_text(name, text)
        check_json("args", dict(self.args))
        check_json("results", dict(self.results))
        for one in (*self.ids, *self.schedules, *self.batches):
            check_id(one)
        if wrong := {*self.states} - {*JobState}:
            raise ArgumentsError(f"states={min(wrong, key=str)!r:.60}: one of {', '.join(JobState)}")
        for name in ("created_before", "created_after", "ended_before", "ended_after"):
            moment = getattr(self, name)
            if isinstance(moment, datetime) and moment.utcoffset() is None:
                raise ArgumentsError(f"{name} must be a datetime with a time zone, or a timedelta, got {moment!r}")

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
        if self.text is not None:
            found.append(_mentions(models, self.text, self.unsearched))
        if self.created_before is not None:
            found.append(job.created_at < by_server(self.created_before))
        if self.created_after is not None:
            found.append(job.created_at >= by_server(self.created_after))
        if self.ended_before is not None:
            found.append(job.finished_at < by_server(self.ended_before))
        if self.ended_after is not None:
            found.append(job.finished_at >= by_server(self.ended_after))
        return found


_RESTRICTIONS = ("not_tasks", "unsearched")
_NOTHING = Selection()


class Filter(NamedTuple):
    """A field of a `Selection` that people give as text, as an option of a command or in an address."""

    name: str
    """Its name in an address. That of the option has `-` in place of `_`."""
    field: str
    help: str
    read: Callable[[str, str], Any]
    metavar: str | None = "TEXT"
    choices: tuple[str, ...] = ()


def read_selection(
    sensitive: Callable[[], Mapping[str, Collection[str]]], given: Mapping[str, Sequence[str]]
) -> Selection:
    """Return the selection that a person gives, each filter with its texts. Raises `ArgumentsError` for invalid ones.

    It searches no sensitive arguments: a search could guess them. A result or a unique key may hold one, so a search by
    these leaves out whole tasks. `sensitive` returns the arguments by task. It is called only if the selection searches
    for values, since it loads all tasks.
    """
    found: dict[str, Any] = {}
    for one in FILTERS:
        values = [one.read(one.name, text.strip()) for text in given.get(one.name, ()) if text.strip()]
        if not values:
            continue
        if one.read is _read_pairs:
            found[one.field] = {name: value for pairs in values for name, value in pairs.items()}
        else:
            found[one.field] = tuple(values) if isinstance(getattr(_NOTHING, one.field), tuple) else values[-1]
    by_args, may_repeat = found.keys() & {"args", "text"}, found.keys() & {"results", "unique_keys"}
    hidden = sensitive() if by_args or may_repeat else {}
    return Selection(**found, unsearched=hidden if by_args else {}, not_tasks=tuple(hidden) if may_repeat else ())


def _read_id(name: str, text: str) -> int:
    try:
        return read_id(text)
    except ValueError:
        raise ArgumentsError(f"{name} must be an integer, got {text!r:.40}") from None


def _read_pairs(name: str, text: str) -> dict[str, Any]:
    """Parse `order=17`, with a value that is JSON or else plain text; or a JSON object."""
    pairs: Any = None
    if text.startswith("{"):
        pairs = read_value(text)
    elif "=" in text:
        key, _, value = text.partition("=")
        pairs = {key.strip(): read_value(value.strip())}
    if not isinstance(pairs, dict):
        raise ArgumentsError(
            f'{name}={text!r:.60}: write name=value, such as order=17 or email="a@b.c", or a JSON object'
        )
    return cast("dict[str, Any]", pairs)


FILTERS = (
    Filter("state", "states", "A state; repeatable.", check_text, None, (*JobState,)),
    Filter("task", "tasks", "The name of a task; repeatable.", check_text),
    Filter("queue", "queues", "The name of a queue; repeatable.", check_text),
    Filter("batch", "batches", "The id of a batch; repeatable.", _read_id, "ID"),
    Filter("schedule", "schedules", "The id of a schedule; repeatable.", _read_id, "ID"),
    Filter("key", "unique_keys", "A unique key; repeatable.", check_text),
    Filter("arg", "args", "A stored argument, at any depth or in an array; repeatable.", _read_pairs, "NAME=VALUE"),
    Filter("result", "results", "A value in the result of a run; repeatable.", _read_pairs, "NAME=VALUE"),
    Filter("error", "error", "Part of the last run's error; case is ignored.", check_text),
    Filter("text", "text", "Part of arguments, headers, progress, a result or an error.", check_text),
    Filter("newer_than", "created_after", "Enqueued after this time, such as 7d (7 days ago).", read_time, "TIME"),
    Filter(
        "older_than", "created_before", "Enqueued before this time, such as 2026-03-29T14:30 (UTC).", read_time, "TIME"
    ),
    Filter("ended_within", "ended_after", "Ended after this time.", read_time, "TIME"),
    Filter("ended_before", "ended_before", "Ended before this time.", read_time, "TIME"),
)
"""What people may select jobs by, from the command line and in the dashboard."""


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


def seconds_since(session: Session, models: Models[Any], given: datetime | timedelta) -> float:
    """Return the seconds since a time that is given as in a `Selection`, by the server's clock."""
    if isinstance(given, timedelta):
        return given.total_seconds()
    age = sa.select(sa.func.date_part("epoch", sa.func.statement_timestamp() - given))
    return float(session.execute(age, bind_arguments={"mapper": models.Job}).scalar_one())


def by_server(given: datetime | timedelta) -> Any:
    """Return a time that is given as a datetime, or as a timedelta before now by the server's clock."""
    return given if isinstance(given, datetime) else sa.func.statement_timestamp() - given


def _last_error_contains(models: Models[Any], words: str) -> sa.ColumnElement[bool]:
    job, run = models.Job, models.Run
    of_job = aliased(run)
    last = sa.select(sa.func.max(of_job.id)).where(of_job.job_id == job.id).correlate(job).scalar_subquery()
    named = sa.or_(run.error.icontains(words, autoescape=True), run.error_type.icontains(words, autoescape=True))
    return sa.select(run.id).where(run.id == last, named).exists()


def _mentions(models: Models[Any], words: str, unsearched: Mapping[str, Collection[str]]) -> sa.ColumnElement[bool]:
    """Return the condition that a job or one of its runs contains `words`.

    Of tasks with unsearched arguments, only the other arguments and the headers are searched: texts may repeat them.
    """
    job, run = models.Job, models.Run
    in_json = json.dumps(words, ensure_ascii=False)[1:-1]

    def contains(column: Any, sought: str = words) -> sa.ColumnElement[bool]:
        found: sa.ColumnElement[bool] = column.icontains(sought, autoescape=True)
        return found

    of_runs = sa.or_(contains(sa.cast(run.result, sa.Text), in_json), contains(run.error), contains(run.error_type))
    texts = sa.or_(
        contains(job.unique_key),
        contains(job.progress_message),
        sa.select(run.id).where(run.job_id == job.id, of_runs).exists(),
    )
    return sa.or_(
        contains(sa.cast(without(job.args, job.task, unsearched), sa.Text), in_json),
        contains(sa.cast(job.headers, sa.Text), in_json),
        job.task.not_in([*unsearched]) & texts,
    )
