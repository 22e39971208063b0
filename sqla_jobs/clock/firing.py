"""One round of the clock: in one transaction due schedules are locked, their jobs inserted, their next ticks stored."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from sqla_jobs.clock.ticks import ticks_due
from sqla_jobs.cron import Cron
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models import MAX_ATTEMPTS, CatchUp, Overlap
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.refusals import in_parts, reason

log = logging.getLogger("sqla_jobs.clock")

BATCH = 1000
"""Schedules looked at in one transaction."""
_LONGEST_JITTER = 366 * 86400.0


def fire_due(connection: Connection, queries: ScheduleQueries, tasks: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Enqueue what is due. Returns the queue of each job, and whether there may be more."""
    due = queries.due(connection, limit=BATCH)
    if not due:
        return [], False
    skipping = [row.id for row in due if row.overlap == Overlap.skip]
    busy = queries.still_live(connection, skipping) if skipping else set[int]()
    plans: dict[int, dict[str, Any]] = {}
    jobs: dict[int, list[dict[str, Any]]] = {}
    for row in due:
        plans[row.id], fired = _plan(row, row.id in busy)
        if fired:
            jobs[row.id] = [_job(row, tick, tasks) for tick in fired]
    names = {row.id: row.name for row in due}
    queues: list[str] = []

    def fire(schedule_ids: Sequence[int]) -> int:
        with connection.begin_nested():
            queues.extend(queries.fire(connection, [job for one in schedule_ids for job in jobs[one]]))
        return len(queues)

    def refused(schedule_id: int, error: DBAPIError) -> None:
        plans[schedule_id] |= _disabled(names[schedule_id], f"the server refuses its job: {reason(error)}")

    in_parts([*jobs], fire, refused)
    queries.advance(connection, [*plans.values()])
    return queues, len(due) == BATCH


def _disabled(name: str, reason: str) -> dict[str, Any]:
    """What becomes of a schedule that cannot be fired; the others go on."""
    log.error("schedule %r is disabled: %s", name, reason)
    return {"enabled": False, "planned": None, "next_run_at": None, "last_run_at": None, "reason": reason}


def _plan(row: Any, is_busy: bool) -> tuple[dict[str, Any], list[datetime]]:
    """What becomes of one schedule, and the ticks to fire."""
    plan = {
        "id": row.id,
        "planned": f"{row.cron} {row.timezone}",
        "next_run_at": None,
        "last_run_at": None,
        "enabled": True,
        "reason": None,
    }
    if not row.enabled:  # what it would have fired meanwhile is nothing to catch up on
        return plan | {"enabled": False, "planned": None}, []
    try:
        cron = Cron.parse(row.cron, row.timezone)
        _check_jitter(row.jitter)
    except ConfigurationError as error:
        return plan | _disabled(row.name, str(error)), []
    if row.is_changed or row.next_run_at is None:
        return plan | {"next_run_at": cron.next_after(row.now)}, []
    fired, plan["next_run_at"] = ticks_due(cron, row.next_run_at, row.now, CatchUp(row.catch_up))
    if is_busy or not fired:
        log.info("schedule %r passes over its tick of %s", row.name, row.next_run_at)
        return plan, []
    if row.overlap == Overlap.skip:
        fired = fired[-1:]
    return plan | {"last_run_at": fired[-1]}, fired


def _check_jitter(jitter: float) -> None:
    """Raises `ConfigurationError` for what can be added to no time, such as NaN."""
    if not abs(jitter) <= _LONGEST_JITTER:
        raise ConfigurationError(f"jitter={jitter}: a number of seconds from 0 to a day")


def _job(row: Any, tick: datetime, tasks: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": row.task,
        "queue": row.queue,
        "priority": row.priority,
        "args": json.dumps(row.args),
        "max_attempts": tasks[row.task].declaration.defaults["max_attempts"] if row.task in tasks else MAX_ATTEMPTS,
        "schedule_id": row.id,
        "scheduled_for": tick,
        "run_at": tick + timedelta(seconds=random.uniform(0, row.jitter)),  # noqa: S311
    }
