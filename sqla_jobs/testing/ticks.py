"""Fires the ticks of schedules that are still to come, one moment after another, in a test's own transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import DateTime, false, func, literal, select
from sqlalchemy.orm import Session

from sqla_jobs.calls.values import ALL
from sqla_jobs.clock.firing import fire, fire_due
from sqla_jobs.clock.sync import sync
from sqla_jobs.jobs import Jobs
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.testing.claims import connection_of, expire_rows


class Ticks:
    """Those of all schedules, declared and stored, within `ahead` seconds from now."""

    def __init__(self, jobs: Jobs[Any], session: Session, ahead: float) -> None:
        """Does what a clock does when it starts: stores what code declares, and fires what is due already."""
        self._jobs = jobs
        self._session = session
        self._ahead = timedelta(seconds=ahead)
        self._queries = ScheduleQueries(jobs.models)
        sync(session, jobs.models, jobs.schedules)
        while fire_due(connection_of(jobs, session), self._queries, jobs.tasks, ALL)[1]:
            pass
        expire_rows(jobs, session)

    def fire_next(self) -> bool:
        """Fire all ticks of the next moment at which there are any, as if it had come. False: there is none."""
        schedule: Any = self._jobs.Schedule
        horizon = func.clock_timestamp() + self._ahead
        upcoming = select(func.min(schedule.next_run_at)).where(schedule.enabled, schedule.next_run_at <= horizon)
        connection = connection_of(self._jobs, self._session)
        moment = connection.scalar(upcoming)
        if moment is None:
            return False
        now = literal(moment, DateTime(timezone=True)).label("now")
        columns = schedule.__table__.c
        due = select(*columns, false().label("is_changed"), now).where(columns.enabled, columns.next_run_at == moment)
        fired = fire(connection, self._queries, self._jobs.tasks, connection.execute(due).all())
        expire_rows(self._jobs, self._session)
        return fired is not None
