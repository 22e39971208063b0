"""The jobs that a statement would change. If the server refuses the statement, these jobs are tried one by one."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar

from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import MANY, Among, names


class ToPromote(Statement):
    """Find the scheduled jobs that are due."""

    text: ClassVar[str] = f"""
        SELECT j.id FROM $jobs j WHERE j.state = 'scheduled' AND j.run_at <= statement_timestamp() AND $is_among
        ORDER BY j.run_at LIMIT {MANY}"""

    def __call__(self, connection: SqlConnection, among: Among) -> list[int]:
        return [job_id for (job_id,) in self._rows(connection, among.parameters())]


class ToRescue(ToPromote):
    """Find the running jobs whose process has no row."""

    text: ClassVar[str] = f"SELECT j.id FROM $jobs j WHERE $is_orphaned AND $is_among LIMIT {MANY}"


class ToClaim(Statement):
    """Find the queued jobs of the given tasks, in one queue, that have no gates."""

    text: ClassVar[str] = f"""
        SELECT j.id FROM $jobs j
        WHERE j.state = 'queued' AND j.queue = :queue AND $is_kind
          AND j.task = ANY (CAST(:tasks AS text[])) AND $is_among
        ORDER BY j.priority, j.position LIMIT {MANY}"""
    pieces: Pieces = MappingProxyType({"is_kind": "j.gates IS NULL"})

    def __call__(self, connection: SqlConnection, queue: str, tasks: Sequence[str], which: Among) -> list[int]:
        values = {"queue": queue, "tasks": names(tuple(tasks)), **which.parameters()}
        return [job_id for (job_id,) in self._rows(connection, values)]


class ToClaimLimited(ToClaim):
    """Find the queued jobs of the given tasks, in one queue, that have gates."""

    pieces: Pieces = MappingProxyType({"is_kind": "j.gates IS NOT NULL"})
