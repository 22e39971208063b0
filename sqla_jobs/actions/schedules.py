"""The changes to schedules, in the caller's transaction. The transaction's commit notifies clocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from psycopg.errors import UniqueViolation
from sqlalchemy.exc import IntegrityError

from sqla_jobs.actions.audit import Changing
from sqla_jobs.cron import Cron
from sqla_jobs.database.notify import after_commit
from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.models.columns import JobMixin, ScheduleMixin
from sqla_jobs.models.types import MAX_ATTEMPTS, JobState
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.rules.limits import ordered_gate
from sqla_jobs.rules.value_checks import check_json, check_name, check_text
from sqla_jobs.tasks.options import checked as check_options
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.schedule import ScheduleOptions

FIELDS = ("task", "cron", "timezone", "args", "queue", "priority", "catch_up", "overlap", "jitter")
"""The fields of a schedule that can be set, besides its name."""


class UnknownSchedule(JobsError, LookupError):
    """There is no such schedule."""


def hold(it: Changing, which: int | str) -> ScheduleMixin:
    """Return the schedule with that id or name, locked until the caller commits. Raises `UnknownSchedule`."""
    schedule = it.models.Schedule
    name = which if isinstance(which, str) else it.session.scalar(sa.select(schedule.name).where(schedule.id == which))
    found = [] if name is None else ScheduleQueries(it.models).hold(it.session, [check_text("name", name)])
    if not found:
        remedy = "`schedule list` shows them" if isinstance(which, str) else "it may have been removed"
        raise UnknownSchedule(f"there is no schedule {which!r}: {remedy}")
    return found[0]


def enable(it: Changing, which: int | str) -> ScheduleMixin:
    """Enable a schedule: it fires at its next tick, and does not catch up on missed ticks.

    Raises `ConfigurationError` for an invalid rule.
    """
    schedule = hold(it, which)
    Cron.parse(schedule.cron, schedule.timezone)
    schedule.enabled, schedule.disabled_reason, schedule.retired_at = True, None, None
    it.record("enable", f"schedule {schedule.name}")
    return schedule


def disable(it: Changing, which: int | str, reason: str) -> ScheduleMixin:
    """Disable a schedule. The reason is shown with the schedule. Sensitive arguments in the reason are withheld."""
    schedule = hold(it, which)
    said = it.tasks.secrets(schedule.task, schedule.args).text(check_text("reason", reason))
    schedule.enabled, schedule.disabled_reason = False, said or None
    it.record("disable", f"schedule {schedule.name}", reason=said)
    return schedule


def add(it: Changing, name: str, values: Mapping[str, Any]) -> ScheduleMixin:
    """Add an operator's schedule. Raises `JobsError` if there is already a schedule with that name."""
    schedule = it.models.Schedule(name=check_name("a schedule name", name), **checked(it.tasks, values))
    try:
        with it.session.begin_nested():
            it.session.add(schedule)
    except IntegrityError as error:
        if not isinstance(error.orig, UniqueViolation):
            raise
        raise JobsError(f"there is a schedule {name!r} already: take another name, or edit that one") from error
    it.record("add", f"schedule {name}", cron=schedule.cron, task=schedule.task)
    return schedule


def edit(it: Changing, which: int | str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Set some of `FIELDS`.

    Return the changed fields with their old and new values. Declarations in code do not reset these fields.
    """
    schedule = hold(it, which)
    now = {name: getattr(schedule, name) for name in FIELDS}
    wanted = checked(it.tasks, {**now, **values})
    changed: dict[str, Any] = {
        name: {"from": now[name], "to": value} for name, value in wanted.items() if value != now[name]
    }
    for name in changed:
        setattr(schedule, name, wanted[name])
    if "args" in changed:  # without values, since some of them may be sensitive
        changed["args"] = "changed"
    if changed:
        it.record("edit", f"schedule {schedule.name}", **changed)
    return changed


def remove(it: Changing, which: int | str) -> None:
    """Delete a schedule that an operator added. Raises `JobsError` if code declares it."""
    schedule = hold(it, which)
    if schedule.declared and schedule.retired_at is None:
        raise JobsError(f"{schedule.name!r} is declared in code, and would come back: disable it instead")
    it.session.delete(schedule)
    it.record("remove", f"schedule {schedule.name}", cron=schedule.cron, task=schedule.task)


def fire(it: Changing, which: int | str) -> JobMixin:
    """Enqueue a job now, as a tick would, even if the schedule is disabled. The schedule's ticks are unaffected."""
    schedule = hold(it, which)
    declaration = it.tasks[schedule.task]._declaration if schedule.task in it.tasks else None
    known = declaration.defaults if declaration else {}
    gates = declaration.gates_of_row(json.dumps(schedule.args)) if declaration else []
    after_commit(it.session, it.models.Job, it.models.channel, "")
    job: JobMixin = it.models.Job(
        task=schedule.task,
        queue=schedule.queue,
        priority=schedule.priority,
        args=schedule.args,
        max_attempts=known.get("max_attempts", MAX_ATTEMPTS),
        max_lost=known.get("max_lost"),
        on_failure=known.get("on_failure"),
        gates=gates or None,
        ordered_by=ordered_gate(gates),
        schedule_id=schedule.id,
        state=JobState.queued,
    )
    it.session.add(job)
    it.session.flush()
    it.record("run now", f"schedule {schedule.name}", job=job.id)
    return job


def checked(tasks: Tasks[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `values` of all `FIELDS`, as stored in a row. Raises `JobsError` for an invalid value."""
    found = {name: values[name] for name in FIELDS}
    cron = Cron.parse(found["cron"], found["timezone"])
    found["cron"], found["timezone"] = cron.text, cron.timezone
    task = found["task"]
    check_name("task", task)
    options = {name: found[name] for name in ("queue", "priority", "catch_up", "overlap", "jitter")}
    found |= check_options(ScheduleOptions, options, "the schedule", ArgumentsError)
    if not isinstance(found["args"], dict):
        raise ArgumentsError("the arguments must be a JSON object, such as {}")
    check_json("args", found["args"])
    if task in tasks:
        declaration = tasks[task]._declaration
        declaration.codec.refuse_secrets(found["args"])
        declaration.codec.decode(json.dumps(found["args"]))
    return found
