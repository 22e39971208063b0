"""One round of the clock: in one transaction due schedules are locked, their jobs inserted, their next ticks stored."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from sqla_jobs.clock.catch_up import ticks_due
from sqla_jobs.cron import Cron
from sqla_jobs.models.types import MAX_ATTEMPTS, CatchUp, Overlap
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.queries.values import Among
from sqla_jobs.rules.outcomes import storable

log = logging.getLogger("sqla_jobs.clock")

BATCH = 1000
"""Schedules looked at in one transaction."""


def fire_due(
    connection: Connection, queries: ScheduleQueries, tasks: Mapping[str, Any], which: Among
) -> tuple[list[str], bool]:
    """Enqueue what is due. Returns the queue of each job, and whether there may be more."""
    due = queries.due(connection, which, limit=BATCH)
    if not due:
        return [], False
    skipping = [row.id for row in due if row.overlap == Overlap.skip]
    busy = queries.still_live(connection, skipping) if skipping else set[int]()
    plans: list[dict[str, Any]] = []
    ticks: list[dict[str, Any]] = []
    for row in due:
        plan, fired = _plan(row, row.id in busy)
        plans.append(plan)
        ticks += [_job(row, tick, tasks) for tick in fired]
    queues = queries.fire(connection, ticks) if ticks else []
    queries.advance(connection, plans)
    return queues, len(due) == BATCH


def _plan(row: Any, is_busy: bool) -> tuple[dict[str, Any], list[datetime]]:
    """What becomes of one schedule, and the ticks to fire."""
    plan = {
        "id": row.id,
        "planned_rule": f"{row.cron} {row.timezone}",
        "next_run_at": None,
        "last_run_at": None,
        "enabled": True,
        "disabled_reason": None,
    }
    if not row.enabled:  # what it would have fired meanwhile is nothing to catch up on
        return plan | {"enabled": False, "planned_rule": None}, []
    try:
        return _due(row, plan, is_busy)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one, the others are fired
        log.error("schedule %r is disabled: %s", row.name, error)  # noqa: TRY400
        return plan | {"enabled": False, "planned_rule": None, "disabled_reason": storable(str(error), 1000)}, []


def _due(row: Any, plan: dict[str, Any], is_busy: bool) -> tuple[dict[str, Any], list[datetime]]:
    """The same for one that is enabled. Raises `ConfigurationError` for what is no rule."""
    cron = Cron.parse(row.cron, row.timezone)
    if row.is_changed or row.next_run_at is None:
        return plan | {"next_run_at": cron.next_after(row.now)}, []
    fired, plan["next_run_at"] = ticks_due(cron, row.next_run_at, row.now, CatchUp(row.catch_up))
    if is_busy or not fired:
        log.info("schedule %r passes over its tick of %s", row.name, row.next_run_at)
        return plan, []
    if row.overlap == Overlap.skip:
        fired = fired[-1:]
    return plan | {"last_run_at": fired[-1]}, fired


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
