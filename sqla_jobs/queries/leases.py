"""The leases of a process, and the progress of its running jobs."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.queries.expressions import leased, locked, seconds, unnest
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import Claimed, Lease


class Leases(Statement):
    """Find the leases of one process, except those whose run ids are in `known`."""

    def __call__(self, connection: SqlConnection, process_id: uuid.UUID, known: Collection[int] = ()) -> list[Lease]:
        return [Lease(*row) for row in self._rows(connection, {"process_id": process_id, "known": list(known)})]

    def sql(self) -> Any:
        jobs = self.tables.jobs
        lease = (jobs.c.id, jobs.c.current_run_id, jobs.c.process_id)
        told = (jobs.c.task, jobs.c.queue, jobs.c.attempt, jobs.c.max_attempts, sa.cast(jobs.c.headers, sa.Text))
        return sa.select(*lease, *told).where(
            jobs.c.state == "running",
            jobs.c.process_id == sa.bindparam("process_id"),
            jobs.c.current_run_id != sa.func.all(sa.bindparam("known", type_=sa.ARRAY(sa.BigInteger))),
        )


class UnknownLeases(Leases):
    """Find leases from claims whose answers never arrived."""

    def __call__(
        self, connection: SqlConnection, process_id: uuid.UUID, known: Collection[int] = (), *, age: float = 0.0
    ) -> list[Lease]:
        """Return the leases of this process that are not in `known` and are older than `age` seconds.

        A lease that begins ahead of the clock is older: the clock was set back since.
        """
        values = {"process_id": process_id, "known": list(known), "age": age}
        return [Lease(*row) for row in self._rows(connection, values)]

    def sql(self) -> Any:
        now, started_at = sa.func.statement_timestamp(), self.tables.jobs.c.started_at
        return super().sql().where((started_at < now - seconds(sa.bindparam("age"))) | (started_at > now))


class CancelRequests(Statement):
    """Find the runs that somebody has asked to cancel, among one process's runs of the given jobs."""

    def __call__(self, connection: SqlConnection, process_id: uuid.UUID, job_ids: Collection[int]) -> dict[int, bool]:
        """Return, by run id, whether the process must be killed to end the run."""
        return dict(self._rows(connection, {"process_id": process_id, "ids": list(job_ids)}))

    def sql(self) -> Any:
        jobs = self.tables.jobs
        return sa.select(jobs.c.current_run_id, jobs.c.kill_requested).where(
            jobs.c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(sa.BigInteger))),
            jobs.c.process_id == sa.bindparam("process_id"),
            jobs.c.cancel_requested_at.is_not(None),
        )


class StoreProgress(Statement):
    """Store the latest progress of some attempts."""

    def __call__(
        self, connection: sa.Connection | Session, progress: Sequence[tuple[Lease | Claimed, float, str | None]]
    ) -> None:
        """Store the progress of attempts whose lease is still valid and whose row is not locked."""
        values = {
            "job_ids": [lease.job_id for lease, _, _ in progress],
            "run_ids": [lease.run_id for lease, _, _ in progress],
            "process_ids": [lease.process_id for lease, _, _ in progress],
            "fractions": [fraction for _, fraction, _ in progress],
            "messages": [message for _, _, message in progress],
        }
        self._run(connection, values)

    def sql(self) -> Any:
        jobs = self.tables.jobs
        told = unnest(
            "told",
            job_id=("job_ids", sa.BigInteger),
            run_id=("run_ids", sa.BigInteger),
            process_id=("process_ids", sa.Uuid),
            fraction=("fractions", sa.Double),
            message=("messages", sa.Text),
        )
        held = leased(jobs, told.c.job_id, told.c.run_id, told.c.process_id)
        rows = sa.select(jobs.c.id, told.c.fraction, told.c.message).select_from(jobs.join(told, held))
        mine = locked(rows, "mine", of=jobs)
        return (
            sa.update(jobs)
            .where(jobs.c.id == mine.c.id)
            .values(progress=mine.c.fraction, progress_message=mine.c.message)
        )
