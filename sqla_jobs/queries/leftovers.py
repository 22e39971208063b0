"""Rows to prune: runs of jobs that the application itself deleted, old entries of the audit log, and old ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import seconds
from sqla_jobs.rules.retention import AUDIT, TICKS

_in_order: Any = aggregate_order_by  # SQLAlchemy 2.0 has no types for it


class Found(NamedTuple):
    """The ids of rows to delete, and the highest id that the search has reached, or None at the end of the table."""

    ids: list[int]
    last: int | None


class Leftovers:
    """The pruning statements for one set of models. They run in a session's transaction."""

    def __init__(self, models: Models[Any]) -> None:
        self._jobs = models.tables["jobs"]
        self._runs = models.tables["runs"]
        self._kept = {noun: models.tables[noun] for noun in (AUDIT, TICKS)}
        self._on = {"mapper": models.Job}

    def last_run(self, session: Session) -> int:
        """Return the highest run id."""
        return session.scalar(sa.select(sa.func.max(self._runs.c.id)), bind_arguments=self._on) or 0

    def find_orphans(self, session: Session, *, after: int, older_than: float, limit: int) -> Found:
        """Among the next `limit` runs, return those that ended over `older_than` seconds ago and whose job is gone.

        A run is stored when its attempt ends, long after the job was committed. So a snapshot that contains the run but
        not the job shows that the job was deleted.
        """
        runs = self._runs
        columns = [runs.c.id, runs.c.job_id, runs.c.finished_at]
        looked = sa.select(*columns).where(runs.c.id > after).order_by(runs.c.id).limit(limit).cte("looked")
        conditions = [self._is_old(looked.c.finished_at, older_than), self._has_no_job(looked)]
        return self._found(session, looked, limit, conditions)

    def remove_orphans(self, session: Session, ids: Sequence[int]) -> int:
        """Delete the runs in `ids` that still have no job and are not locked. Return the number of deleted runs."""
        runs = self._runs
        free = sa.select(runs.c.id).where(self._named(runs), self._has_no_job(runs)).order_by(runs.c.id)
        locked = free.with_for_update(skip_locked=True, of=runs).cte("locked").prefix_with("MATERIALIZED")
        return self._delete(session, sa.delete(runs).where(runs.c.id.in_(sa.select(locked.c.id))), ids)

    def find_old(self, session: Session, noun: str, *, after: int, older_than: float, limit: int) -> Found:
        """Among the next `limit` rows of the audit log or of ticks, return those over `older_than` seconds old.

        Ids nearly always grow with time, so the oldest rows come first.
        """
        rows = self._kept[noun]
        looked = sa.select(rows.c.id, rows.c.at).where(rows.c.id > after).order_by(rows.c.id).limit(limit).cte("looked")
        return self._found(session, looked, limit, [self._is_old(looked.c.at, older_than)])

    def remove_old(self, session: Session, noun: str, ids: Sequence[int]) -> int:
        """Delete these rows.

        Return the number of deleted rows. The rows are not locked first: a lock needs the right to update them, which
        no role needs otherwise.
        """
        return self._delete(session, sa.delete(self._kept[noun]).where(self._named(self._kept[noun])), ids)

    def _found(self, session: Session, looked: Any, limit: int, conditions: list[sa.ColumnElement[bool]]) -> Found:
        chosen = sa.func.array_agg(_in_order(looked.c.id, looked.c.id)).filter(*conditions)
        statement = sa.select(chosen, sa.func.max(looked.c.id), sa.func.count())
        ids, last, count = session.execute(statement, bind_arguments=self._on).one()
        return Found([*(ids or ())], last if count == limit else None)

    def _delete(self, session: Session, statement: sa.Delete, ids: Sequence[int]) -> int:
        gone: Any = session.execute(statement, {"ids": list(ids)}, bind_arguments=self._on)
        return int(gone.rowcount)

    def _named(self, rows: Any) -> sa.ColumnElement[bool]:
        named: sa.ColumnElement[bool] = rows.c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(sa.BigInteger)))
        return named

    def _is_old(self, moment: Any, older_than: float) -> sa.ColumnElement[bool]:
        is_old: sa.ColumnElement[bool] = moment < sa.func.statement_timestamp() - seconds(older_than)
        return is_old

    def _has_no_job(self, runs: Any) -> sa.ColumnElement[bool]:
        """Return a condition that looks jobs up by their ids: with NOT EXISTS the planner might read all jobs first."""
        job = sa.select(self._jobs.c.id).where(self._jobs.c.id == runs.c.job_id).correlate(runs).scalar_subquery()
        return job.is_(None)
