"""Deleting jobs together with their runs, but not those that rows of the application refer to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    any_,
    bindparam,
    column,
    delete,
    exists,
    func,
    select,
    table,
    text,
)
from sqlalchemy.orm import Session

from sqla_jobs.mapping import Models
from sqla_jobs.queries.parts import Tables, seconds


class Reference(NamedTuple):
    """A foreign key to jobs that forbids their deletion: `schema.table.column` refers to the jobs' `target`."""

    schema: str
    table: str
    column: str
    target: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column}"

    def to(self, jobs: Any) -> ColumnElement[bool]:
        """Whether a row refers to the job at hand."""
        referring = table(self.table, column(self.column), schema=self.schema)
        return exists().select_from(referring).where(referring.c[self.column] == jobs.c[self.target])


class Removal:
    """The statements over one set of models; on a session, in its transaction."""

    def __init__(self, models: Models[Any]) -> None:
        self._tables = Tables(models)
        self._on = {"mapper": models.Job}

    def references(self, session: Session) -> list[Reference]:
        """The foreign keys that forbid deleting a job to which a row refers."""
        full_name = session.connection(self._on).dialect.identifier_preparer.format_table(self._tables.jobs)
        rows = session.execute(_REFERENCES, {"jobs": full_name}, bind_arguments=self._on)
        return [Reference(*row) for row in rows]

    def remove(self, session: Session, ids: Sequence[int], references: Sequence[Reference]) -> int:
        """Delete those of the jobs that neither run, nor are locked, nor referred to. Returns how many went."""
        jobs = self._tables.jobs
        named = jobs.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger)))
        statement = self._remove(select(jobs.c.id).where(named, jobs.c.state != "running"), references)
        return session.scalar(statement, {"ids": list(ids)}, bind_arguments=self._on) or 0

    def remove_ended(
        self, session: Session, state: str, references: Sequence[Reference], *, older_than: float, limit: int | None
    ) -> int:
        """The same for at most `limit` jobs that ended in `state`, `older_than` seconds ago, the oldest first."""
        chosen = self._expired(state, older_than).order_by(self._tables.jobs.c.finished_at).limit(limit)
        return session.scalar(self._remove(chosen, references), bind_arguments=self._on) or 0

    def _expired(self, state: str, older_than: float) -> Select[Any]:
        jobs = self._tables.jobs
        moment = func.statement_timestamp() - seconds(older_than)
        return select(jobs.c.id).where(jobs.c.state == text(f"'{state}'"), jobs.c.finished_at < moment)

    def _remove(self, chosen: Select[Any], references: Sequence[Reference]) -> Any:
        jobs, runs = self._tables.jobs, self._tables.runs
        free = chosen.where(*(~reference.to(jobs) for reference in references)).with_for_update(
            skip_locked=True, of=jobs
        )
        locked = free.cte("locked").prefix_with("MATERIALIZED")
        gone = delete(jobs).where(jobs.c.id.in_(select(locked.c.id))).returning(jobs.c.id).cte("gone")
        without = delete(runs).where(runs.c.job_id.in_(select(gone.c.id))).cte("without")
        return select(func.count()).select_from(gone).add_cte(without)


_REFERENCES = text(
    """
    SELECT space.nspname, referring.relname, referring_column.attname, target.attname
    FROM pg_constraint AS reference
    JOIN pg_class AS referring ON referring.oid = reference.conrelid
    JOIN pg_namespace AS space ON space.oid = referring.relnamespace
    JOIN pg_attribute AS referring_column
      ON referring_column.attrelid = reference.conrelid AND referring_column.attnum = reference.conkey[1]
    JOIN pg_attribute AS target
      ON target.attrelid = reference.confrelid AND target.attnum = reference.confkey[1]
    WHERE reference.confrelid = CAST(:jobs AS regclass) AND reference.contype = 'f'
      AND reference.confdeltype IN ('a', 'r') AND cardinality(reference.conkey) = 1
    ORDER BY 1, 2, 3
    """
)
