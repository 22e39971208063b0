"""The jobs that a statement over many would look at: to be tried one by one where the server refuses one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, Connection, Text, any_, func, literal, select

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import Tables, in_state, is_among
from sqla_jobs.queries.rescue import is_orphaned
from sqla_jobs.queries.values import MANY, Among


class Candidates:
    """Ids of some jobs that a claim, a promotion or a rescue may change, but for those set aside."""

    def __init__(self, models: Models[Any]) -> None:
        self._tables = Tables(models)

    def to_claim(self, connection: Connection, queue: str, tasks: Sequence[str], which: Among) -> list[int]:
        """Those that are queued in this queue, for these tasks."""
        jobs = self._tables.jobs
        here = (in_state(jobs, "queued"), jobs.c.queue == queue, jobs.c.task == any_(_texts(tasks)))
        rows = select(jobs.c.id).where(*here).order_by(jobs.c.priority, jobs.c.position)
        return self._ids(connection, rows, which)

    def to_promote(self, connection: Connection, which: Among) -> list[int]:
        """Those that are scheduled and due."""
        jobs = self._tables.jobs
        due = select(jobs.c.id).where(in_state(jobs, "scheduled"), jobs.c.run_at <= func.statement_timestamp())
        return self._ids(connection, due.order_by(jobs.c.run_at), which)

    def to_rescue(self, connection: Connection, which: Among) -> list[int]:
        """Those that run under a process without a row."""
        return self._ids(connection, select(self._tables.jobs.c.id).where(is_orphaned(self._tables)), which)

    def _ids(self, connection: Connection, rows: Any, which: Among) -> list[int]:
        statement = rows.where(is_among(self._tables.jobs)).limit(MANY)
        return list(connection.execute(statement, which.parameters()).scalars())


def _texts(values: Sequence[str]) -> Any:
    return literal(list(values), ARRAY(Text))
