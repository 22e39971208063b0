"""The jobs that a statement would change. If the server refuses the statement, these jobs are tried one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from sqla_jobs.queries.expressions import Tables, in_state, is_among
from sqla_jobs.queries.rescue import is_orphaned
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import MANY, Among


class Candidates(Statement):
    """Find the ids of some jobs that a bulk statement would process. After an error, these are tried in parts."""

    def __call__(self, connection: SqlConnection, among: Among) -> list[int]:
        return [job_id for (job_id,) in self._rows(connection, among.parameters())]


class ToClaim(Statement):
    """Find the queued jobs of the given tasks, in one queue, that have no gates."""

    def __call__(self, connection: SqlConnection, queue: str, tasks: Sequence[str], which: Among) -> list[int]:
        values = {"queue": queue, "tasks": list(tasks), **which.parameters()}
        return [job_id for (job_id,) in self._rows(connection, values)]

    @staticmethod
    def _is_one(jobs: Any) -> Any:
        return jobs.c.gates.is_(None)

    def sql(self) -> Any:
        jobs = self.tables.jobs
        is_known = jobs.c.task == sa.any_(sa.bindparam("tasks", type_=sa.ARRAY(sa.Text)))
        here = (in_state(jobs, "queued"), jobs.c.queue == sa.bindparam("queue"), self._is_one(jobs), is_known)
        return _some(self.tables, sa.select(jobs.c.id).where(*here).order_by(jobs.c.priority, jobs.c.position))


class ToClaimLimited(ToClaim):
    """Find the queued jobs of the given tasks, in one queue, that have gates."""

    @staticmethod
    def _is_one(jobs: Any) -> Any:
        return jobs.c.gates.is_not(None)


class ToPromote(Candidates):
    """Find the scheduled jobs that are due."""

    def sql(self) -> Any:
        jobs = self.tables.jobs
        due = sa.select(jobs.c.id).where(in_state(jobs, "scheduled"), jobs.c.run_at <= sa.func.statement_timestamp())
        return _some(self.tables, due.order_by(jobs.c.run_at))


class ToRescue(Candidates):
    """Find the running jobs whose process has no row."""

    def sql(self) -> Any:
        return _some(self.tables, sa.select(self.tables.jobs.c.id).where(is_orphaned(self.tables)))


def _some(tables: Tables, rows: Any) -> Any:
    return rows.where(is_among(tables.jobs)).limit(MANY)
