"""Storage of successful ends, as cheaply as possible. `finish` stores the ends that these statements skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.errors import LeaseLost
from sqla_jobs.queries.expressions import Tables, row_held, waiting_at_most
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import RunEnd, in_order, numbers, of_lease, texts


class SucceedMany(Statement):
    """Store ends whose lease is still valid and whose row is not locked. The row count is the number of stored ends."""

    text: ClassVar[str] = read("succeed_many")

    def __call__(self, connection: sa.Connection | Session, ends: Sequence[RunEnd]) -> int:
        """Store the ends of successful runs of one process. Return the number of stored ends."""
        leases, outcomes, started, finished, _ = zip(*in_order(ends), strict=True)
        values = {
            "job_ids": numbers([lease.job_id for lease in leases]),
            "run_ids": numbers([lease.run_id for lease in leases]),
            "lease_process_id": leases[0].process_id,
            "all_started": numbers([f"{moment:.6f}" for moment in started]),
            "all_finished": numbers([f"{moment:.6f}" for moment in finished]),
            "results": texts([outcome.result for outcome in outcomes]),
        }
        return int(self._run(connection, values).rowcount)


class SucceedOne(Statement):
    """Store the end of one run, waiting for the job's row if necessary. The answer is 0 if the lease is lost.

    `lock_timeout` limits the wait, in seconds. The limit then applies to the rest of the transaction. `answer` is the
    SQL of another answer about the stored runs.
    """

    text: ClassVar[str] = read("succeed_one")

    def __init__(self, tables: Tables, lock_timeout: float | None = None, answer: str = "count(*)") -> None:
        super().__init__(tables)
        self.pieces: Pieces = {"waits_briefly": waiting_at_most(lock_timeout), "answer": answer}

    def __call__(self, session: Session | sa.Connection, end: RunEnd) -> None:
        """Store a success inside the attempt's own transaction, waiting for the job's row if necessary.

        Raises `LeaseLost` and `RowHeld`.
        """
        with row_held():
            stored = self._run(session, self.parameters(end)).scalar()
        if stored != 1:
            raise LeaseLost

    @staticmethod
    def parameters(end: RunEnd) -> dict[str, Any]:
        """Return the parameters of the statement."""
        times = {"all_started": end.started, "all_finished": end.finished}
        return {**of_lease(end.lease), **times, "all_results": end.outcome.result}
