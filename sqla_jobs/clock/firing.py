"""One round of the clock, in one transaction.

The round locks the due schedules, inserts their jobs, stores their next ticks, and records the outcome of each tick
that came due.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from sqla_jobs.clock.catch_up import Missed, ticks_due
from sqla_jobs.cron import Cron
from sqla_jobs.models.types import MAX_ATTEMPTS, CatchUp, Overlap, TickOutcome
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.queries.unique_ticks import UniqueTick
from sqla_jobs.queries.values import Among
from sqla_jobs.rules.outcomes import storable
from sqla_jobs.tasks.enqueue import gate_columns

log: logging.Logger = logging.getLogger("sqla_jobs.clock")

BATCH = 1000
"""The maximum number of schedules that one transaction handles."""


class Made(NamedTuple):
    """A job that was enqueued for a tick."""

    message: str
    """The message that notifies workers of the job."""
    task: str
    queue: str


def fire_due(
    connection: sa.Connection, queries: ScheduleQueries, tasks: Mapping[str, Any], which: Among
) -> tuple[list[Made], bool]:
    """Enqueue the jobs that are due. Return the new jobs, and whether more may be due."""
    due = queries.due(connection, which, limit=BATCH)
    fired = fire(connection, queries, tasks, due) if due else None
    return ([], False) if fired is None else (fired, len(due) == BATCH)


def fire(
    connection: sa.Connection, queries: ScheduleQueries, tasks: Mapping[str, Any], due: Sequence[Any]
) -> list[Made] | None:
    """Enqueue jobs for the ticks of each schedule up to the schedule's `now`. Return the new jobs.

    If open transactions hold the unique keys of all schedules, store nothing and return `None`.
    """
    skipping = [row.id for row in due if row.overlap == Overlap.skip]
    live = queries.still_live(connection, skipping) if skipping else {}
    plans = [_plan(row, live.get(row.id), tasks) for row in due]
    jobs = [_job(plan.schedule, tick, tasks) for plan in plans for tick in plan.fired if plan.unique is None]
    made = queries.fire(connection, jobs) if jobs else []
    for plan in list(plans):
        if plan.unique is None:
            continue
        jobs = [_job(plan.schedule, tick, tasks) for tick in plan.fired]
        came = _fire_unique(connection, queries, plan, plan.unique, jobs)
        if came is None:
            plans.remove(plan)
        else:
            made += came
    if not plans:
        return None
    ticks = [tick for plan in plans for tick in plan.unfired()]
    ticks += [_tick(job.schedule_id, job.scheduled_for, TickOutcome.enqueued, job.id) for job in made]
    if ticks:
        queries.record(connection, ticks)
    queries.advance(connection, [plan.values for plan in plans])
    by_id = {row.id: row for row in due}
    return [Made(job.message, by_id[job.schedule_id].task, by_id[job.schedule_id].queue) for job in made]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The plan for one schedule in a round: the values to store in the schedule, and its ticks."""

    schedule: Any
    values: dict[str, Any]
    fired: Sequence[datetime] = ()
    missed: Missed | None = None
    skipped: datetime | None = None
    skipped_for: int | None = None
    """The id of the schedule's earlier job that has not ended."""
    unique: UniqueTick | None = None
    """The unique key and period of the ticks, if the task is unique."""
    left_out: list[tuple[datetime, int | None]] = field(default_factory=list[tuple[datetime, int | None]])
    """Ticks whose key was taken, each with the id of the job that holds the key."""

    def unfired(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each tick that enqueues no job. The missed ticks share one row."""
        if self.missed is not None:
            missed = _tick(self.schedule.id, self.missed.first, TickOutcome.missed, None)
            yield missed | {"until": self.missed.last, "count": self.missed.count}
        if self.skipped is not None:
            yield _tick(self.schedule.id, self.skipped, TickOutcome.skipped, self.skipped_for)
        for tick, holder in self.left_out:
            yield _tick(self.schedule.id, tick, TickOutcome.skipped, holder)


def _fire_unique(
    connection: sa.Connection,
    queries: ScheduleQueries,
    plan: _Plan,
    unique: UniqueTick,
    jobs: Sequence[Mapping[str, Any]],
) -> list[Any] | None:
    """Enqueue jobs for the ticks of a unique task, and return them. In the plan, note the ticks whose key is taken.

    Return `None` if an open transaction holds the key. The schedule then stays due, without delaying other schedules.
    """
    came = queries.fire_unique(connection, jobs, unique)
    if came is None:
        log.info("an open transaction has the key of schedule %r: it is tried again", plan.schedule.name)
        return None
    made = [job.scheduled_for for job in came.made]
    plan.left_out.extend((tick, came.holder) for tick in plan.fired if tick not in (*made, *came.there_before))
    plan.values["last_run_at"] = max(made, default=None)
    return came.made


def _plan(row: Any, live_job: int | None, tasks: Mapping[str, Any]) -> _Plan:
    values = {
        "id": row.id,
        "planned_rule": f"{row.cron} {row.timezone}",
        "next_run_at": None,
        "last_run_at": None,
        "enabled": True,
        "disabled_reason": None,
    }
    if not row.enabled:  # the ticks of a disabled schedule are not fired later
        return _Plan(row, values | {"enabled": False, "planned_rule": None})
    try:
        plan = _due(row, values, live_job)
        return replace(plan, unique=_unique(row, tasks)) if plan.fired else plan
    except Exception as error:  # noqa: BLE001 - an error in one schedule must not stop the others
        log.error("schedule %r is disabled: %s", row.name, error)  # noqa: TRY400
        wrong = {"enabled": False, "planned_rule": None, "disabled_reason": storable(str(error), 1000)}
        return _Plan(row, values | wrong)


def _due(row: Any, values: dict[str, Any], live_job: int | None) -> _Plan:
    """Plan the ticks of an enabled schedule. Raises `ConfigurationError` if its rule is invalid."""
    cron = Cron.parse(row.cron, row.timezone)
    if row.is_changed or row.next_run_at is None:
        return _Plan(row, values | {"next_run_at": cron.next_after(row.now)})
    catch_up = CatchUp(row.catch_up)
    if row.overlap == Overlap.skip and catch_up == CatchUp.all:  # the schedule may have only one job at a time
        catch_up = CatchUp.latest
    due = ticks_due(cron, row.next_run_at, row.now, catch_up)
    values = values | {"next_run_at": due.upcoming}
    if not due.fired or live_job is not None:
        log.info("schedule %r skips its tick of %s", row.name, row.next_run_at)
        return _Plan(row, values, missed=due.missed, skipped=due.fired[-1] if due.fired else None, skipped_for=live_job)
    return _Plan(row, values | {"last_run_at": due.fired[-1]}, due.fired, due.missed)


def _unique(row: Any, tasks: Mapping[str, Any]) -> UniqueTick | None:
    rule = tasks[row.task]._declaration.unique if row.task in tasks else None
    key = None if rule is None else rule.key_of(row.args)
    return None if rule is None or key is None else UniqueTick(key, rule.policy.per)


def _tick(schedule_id: int, tick: datetime, outcome: TickOutcome, job_id: int | None) -> dict[str, Any]:
    return {
        "schedule_id": schedule_id,
        "scheduled_for": tick,
        "until": tick,
        "count": 1,
        "outcome": outcome,
        "job_id": job_id,
    }


def _job(row: Any, tick: datetime, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a job. If this program does not know the task, a worker gives the job its gates."""
    declaration = tasks[row.task]._declaration if row.task in tasks else None
    defaults = declaration.defaults if declaration else {}
    follow_up = defaults.get("on_failure")
    args = json.dumps(row.args)
    return {
        **gate_columns(declaration.gates_of_row(args) if declaration else ()),
        "task": row.task,
        "queue": row.queue,
        "priority": row.priority,
        "args": args,
        "max_attempts": defaults.get("max_attempts", MAX_ATTEMPTS),
        "max_lost": defaults.get("max_lost"),
        "on_failure": None if follow_up is None else json.dumps(follow_up),
        "schedule_id": row.id,
        "scheduled_for": tick,
        "run_at": tick + timedelta(seconds=random.uniform(0, row.jitter)),  # noqa: S311
    }
