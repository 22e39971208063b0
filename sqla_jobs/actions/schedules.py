"""What people do to schedules, in a transaction of theirs. Clocks are told when it commits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from psycopg.errors import UniqueViolation
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs.actions.jobs import run_schedule
from sqla_jobs.cron import Cron
from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.models.columns import JobMixin, ScheduleMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import CatchUp, Overlap
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.rules.checks import check_json, check_name, check_text
from sqla_jobs.tasks.enqueue import check_common
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.schedule import jitter_of, one_of

FIELDS = ("task", "cron", "timezone", "args", "queue", "priority", "catch_up", "overlap", "jitter")
"""What can be set of a schedule, beside its name."""


class UnknownSchedule(JobsError, LookupError):
    """There is no such schedule."""


def hold(session: Session, models: Models[Any], schedule_id: int) -> ScheduleMixin:
    """The schedule, locked until the caller commits. Raises `UnknownSchedule`."""
    name = session.scalar(select(models.Schedule.name).where(models.Schedule.id == schedule_id))
    found = ScheduleQueries(models).hold(session, [name]) if name is not None else []
    if not found:
        raise UnknownSchedule(f"There is no schedule {schedule_id}; it may have been removed.")
    return found[0]


def enable(session: Session, models: Models[Any], schedule_id: int) -> ScheduleMixin:
    """It fires from its next tick on, and catches up on nothing. Raises `ConfigurationError` for a wrong rule."""
    schedule = hold(session, models, schedule_id)
    Cron.parse(schedule.cron, schedule.timezone)
    schedule.enabled, schedule.disabled_reason, schedule.retired_at = True, None, None
    return schedule


def disable(session: Session, models: Models[Any], schedule_id: int, reason: str) -> ScheduleMixin:
    """It fires nothing more. The reason is for whoever finds it so."""
    schedule = hold(session, models, schedule_id)
    schedule.enabled, schedule.disabled_reason = False, check_text("reason", reason) or None
    return schedule


def add(
    session: Session, models: Models[Any], tasks: Tasks[Any], name: str, values: Mapping[str, Any]
) -> ScheduleMixin:
    """A new schedule of an operator's. Raises `JobsError` where there is one of that name."""
    schedule = models.Schedule(name=check_name("a schedule name", name), **checked(tasks, values))
    try:
        with session.begin_nested():
            session.add(schedule)
    except IntegrityError as error:
        if not isinstance(error.orig, UniqueViolation):
            raise
        raise JobsError(f"there is a schedule {name!r} already: take another name, or edit that one") from error
    return schedule


def edit(
    session: Session, models: Models[Any], tasks: Tasks[Any], schedule_id: int, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Set some of `FIELDS`. Returns what changed, as it was and as it is. Code does not take it back."""
    schedule = hold(session, models, schedule_id)
    now = {name: getattr(schedule, name) for name in FIELDS}
    wanted = checked(tasks, {**now, **values})
    changed = {name: {"from": now[name], "to": value} for name, value in wanted.items() if value != now[name]}
    for name in changed:
        setattr(schedule, name, wanted[name])
    return changed


def fire(session: Session, models: Models[Any], tasks: Tasks[Any], schedule_id: int) -> JobMixin:
    """A job as the schedule enqueues them, now and beside its ticks; also of one that is disabled."""
    job = run_schedule(session, models, hold(session, models, schedule_id), tasks)
    session.flush()
    return job


def checked(tasks: Tasks[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of all `FIELDS`, as a row has them. Raises `JobsError` for what no schedule could have."""
    found = {name: values[name] for name in FIELDS}
    cron = Cron.parse(found["cron"], found["timezone"])
    found["cron"], found["timezone"] = cron.text, cron.timezone
    task = found["task"]
    check_name("task", task)
    check_common({"queue": found["queue"], "priority": found["priority"]})
    found["catch_up"] = one_of(CatchUp, "catch_up", found["catch_up"])
    found["overlap"] = one_of(Overlap, "overlap", found["overlap"])
    found["jitter"] = jitter_of(found["jitter"])
    if not isinstance(found["args"], dict):
        raise ArgumentsError("the arguments must be a JSON object, such as {}")
    check_json("args", found["args"])
    if task in tasks:
        tasks[task].declaration.codec.decode(json.dumps(found["args"]))
    return found
