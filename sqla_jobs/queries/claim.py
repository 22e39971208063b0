"""The statements that claim jobs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.models.types import MOST_ATTEMPTS
from sqla_jobs.queries.expressions import (
    Tables,
    array_of,
    committed_to_disk,
    in_state,
    is_among,
    unnest_text,
)
from sqla_jobs.queries.restrictions import claimable_tasks, limited_queues, paused, unlimited_tasks
from sqla_jobs.queries.sql_text import filled
from sqla_jobs.queries.statement import RenderedStatement, SqlConnection, Statement
from sqla_jobs.queries.values import ALL, EVERYWHERE, PRIORITIES, Among, Claimed, names, numbers, texts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment_of(seconds: float) -> datetime | None:
    """Return the datetime that is `seconds` after 1970-01-01 UTC. None if no datetime can represent it."""
    try:
        return _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return None


def _epoch(moment: Any) -> Any:
    """Return the seconds from 1970 to `moment`; infinite if `moment` is infinite."""
    return sa.func.date_part(sa.literal_column("'epoch'"), moment)


class ClaimStatement(RenderedStatement):
    """The base class of all claims, which makes `Claimed` jobs from the rows that a claim returns."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._elapsed = Elapsed(tables)

    def claimed(
        self,
        connection: SqlConnection,
        process_id: uuid.UUID,
        rows: Sequence[Any],
        gates: Mapping[int, tuple[str, ...]] = MappingProxyType({}),
    ) -> list[Claimed]:
        """Return the rows as jobs, in claim order. `gates` maps the ids of the jobs with gates to their gates."""
        again = [row[0] for row in rows if row[-1]]
        elapsed = self._elapsed(connection, again) if again else {}
        claimed = [
            # like Claimed(…), but without calling a Python function
            tuple.__new__(
                Claimed,
                (
                    job_id,
                    run_id,
                    process_id,
                    *rest,
                    None if due is None else _moment_of(due),
                    elapsed.get(job_id, 0.0),
                    gates.get(job_id, ()),
                    timeout,
                    is_past is True and job_id not in elapsed,  # a job that has begun has a run, and so an elapsed time
                ),
            )
            for job_id, run_id, *rest, due, timeout, is_past, _ in rows
        ]
        return sorted(claimed, key=attrgetter("priority", "position"))


class Claim(ClaimStatement):
    """Claim jobs without limits from several queues in one statement."""

    def __call__(
        self,
        connection: sa.Connection | Session,
        process_id: uuid.UUID,
        slots: dict[str, int],
        tasks: Sequence[str],
        floors: Mapping[str, Sequence[int]] | None = None,
        among: Among = ALL,
    ) -> list[Claimed]:
        """Claim at most `slots[queue]` queued jobs from each queue, in claim order.

        Jobs of paused queues and tasks are not claimed. At each priority, only jobs above that priority's position in
        `floors[queue]` are found. A process without a row gets no jobs.
        """
        rows = self._rows(connection, self.values(process_id, slots, tasks, floors, among))
        return self.claimed(connection, process_id, rows)

    @staticmethod
    def values(
        process_id: uuid.UUID,
        slots: dict[str, int],
        tasks: Sequence[str],
        floors: Mapping[str, Sequence[int]] | None = None,
        among: Among = ALL,
    ) -> dict[str, Any]:
        """Return the parameters of the statement."""
        return {
            "process_id": process_id,
            "tasks": names(tuple(tasks)),
            "lanes": names(tuple(slots)),
            "slots": numbers(slots.values()),
            "floors": texts([numbers((floors or {}).get(queue, EVERYWHERE)) for queue in slots]),
            **among.parameters(),
        }

    def _may_start(self, jobs: Any) -> tuple[Any, ...]:
        """Return the conditions under which a job may start.

        The conditions read the claim's own snapshot, since limits and pauses can change at any time.
        """
        return jobs.c.gates.is_(None), jobs.c.task == sa.any_(unlimited_tasks(self.tables))

    def _queues_left_out(self) -> Any:
        return array_of(sa.union_all(paused(self.tables.queues), limited_queues(self.tables)))

    def _slots(self, lane: Any) -> Any:
        return lane.c.slots

    def sql(self) -> Any:
        tables, jobs, processes = self.tables, self.tables.jobs, self.tables.processes
        # if a server crash could undo a claim, another claim of the job might get the same lease
        lanes = sa.case((committed_to_disk(), sa.bindparam("lanes", type_=sa.Text)))
        # a claim locks the process's row until it commits. Without that lock it takes no jobs. So no claim in progress
        # can give jobs to a process that is considered dead
        process_id = sa.bindparam("process_id", type_=sa.Uuid)
        owner: Any = (
            sa.select(processes.c.id)
            .where(processes.c.id == process_id)
            .with_for_update(skip_locked=True, read=True, key_share=True)
        )
        owner = owner.cte("owner").prefix_with("MATERIALIZED")
        lane = unnest_text("lane", queue=(lanes, sa.Text), slots=("slots", sa.Integer), floors=("floors", sa.Text))
        priorities: sa.ColumnElement[str] = sa.literal_column(f"'{numbers(PRIORITIES)}'")
        probe = unnest_text("probe", priority=(priorities, sa.SmallInteger), floor=(lane.c.floors, sa.BigInteger))
        # each priority has its own probe: an ordered index scan from the priority's floor. An ORDER BY above the probes
        # would lock all rows that the probes return, and not only those within the limit
        found = (
            sa.select(jobs.c.ctid, jobs.c.id, jobs.c.started_at)
            .where(
                in_state(jobs, "queued"),
                jobs.c.queue == lane.c.queue,
                jobs.c.priority == probe.c.priority,
                jobs.c.position > probe.c.floor,
                *self._may_start(jobs),
                is_among(jobs),
            )
            .order_by(jobs.c.position)
            .limit(lane.c.slots)
            .with_for_update(skip_locked=True, key_share=True)
            .correlate(probe, lane)
            .lateral("found")
        )
        taken = (
            sa.select(*found.c)
            .select_from(probe.join(found, sa.true()))
            .limit(self._slots(lane))
            .correlate(lane)
            .lateral("taken")
        )
        due = (
            sa.select(*taken.c)
            .select_from(lane.join(taken, sa.true()))
            .where(lane.c.queue != sa.all_(self._queues_left_out()))
            .cte("due")
            .prefix_with("MATERIALIZED")
        )
        # lock only if there are jobs: a row lock is written to disk, and most claims of an idle worker find no job
        locked = sa.case((sa.exists(sa.select(due.c.ctid)), sa.select(owner.c.id).scalar_subquery()))
        return (
            sa.update(jobs)
            .where(jobs.c.ctid == sa.any_(array_of(sa.select(due.c.ctid))), locked.is_not(None))
            .values(
                state="running",
                attempt=sa.func.least(jobs.c.attempt, MOST_ATTEMPTS - 1) + 1,
                current_run_id=tables.run_ids.next_value(),
                process_id=process_id,
                started_at=sa.func.statement_timestamp(),
                progress=sa.null(),
                progress_message=sa.null(),
            )
            .returning(
                jobs.c.id,
                jobs.c.current_run_id,
                jobs.c.task,
                jobs.c.queue,
                jobs.c.priority,
                jobs.c.position,
                sa.cast(jobs.c.args, sa.Text),
                jobs.c.attempt,
                jobs.c.max_attempts,
                sa.cast(jobs.c.headers, sa.Text),
                sa.cast(_epoch(sa.func.statement_timestamp()) - _epoch(jobs.c.run_at), sa.REAL),
                # as a number, which the driver can read for any time and any DateStyle of the session
                _epoch(jobs.c.scheduled_for),
                jobs.c.timeout,
                jobs.c.expires_at <= sa.func.statement_timestamp(),
                jobs.c.id == sa.any_(array_of(sa.select(due.c.id).where(due.c.started_at.is_not(None)))),
            )
        )


class ClaimFromLimitedQueue(Claim):
    """Claim jobs without gates from queues that have a limit of their own. The caller holds the limits lock."""

    def _queues_left_out(self) -> Any:
        return array_of(paused(self.tables.queues))

    def _slots(self, lane: Any) -> Any:
        return sa.func.least(lane.c.slots, sa.literal_column(filled("$queue_free(lane.queue)", self.tables)))


class ClaimWhateverTheLimits(ClaimFromLimitedQueue):
    """Claim jobs regardless of limits. Applications' tests use this, and run one job at a time."""

    def _may_start(self, jobs: Any) -> tuple[Any, ...]:
        return (jobs.c.task == sa.any_(claimable_tasks(self.tables)),)

    def _slots(self, lane: Any) -> Any:
        return lane.c.slots


class Elapsed(Statement):
    """Return the seconds since the first start of each job, by id. All of the jobs have been started before.

    A replaced job begins anew with its `created_at`.
    """

    text: ClassVar[str] = """
        SELECT r.job_id, CAST(extract(epoch FROM statement_timestamp() - min(r.started_at)) AS float8)
        FROM $runs r JOIN $jobs j ON j.id = r.job_id
        WHERE r.job_id = ANY (CAST(:ids AS bigint[])) AND $of_this_job GROUP BY r.job_id"""

    def __call__(self, connection: sa.Connection | Session, job_ids: Sequence[int]) -> dict[int, float]:
        return dict(self._rows(connection, {"ids": numbers(job_ids)}))
