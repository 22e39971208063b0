"""The steps of running jobs, and the signals to them.

Each write happens in a transaction that has locked the job's row and checked its lease. So a run that has lost the
lease stores nothing. On the library's own connections no statement waits for that row, since others need these
connections: `RowHeld` is raised, and the caller tries again. A step is recorded by a plain INSERT with a primary key.
So if a COMMIT that was given up arrives late, it cannot store a step for a second time.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa

from sqla_jobs.errors import LeaseLost, RowHeld
from sqla_jobs.queries.expressions import Tables, row_held, waiting_at_most
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import Claimed, Lease, of_lease
from sqla_jobs.rules.outcomes import type_name

HELD: str = type_name(RowHeld)
"""The error type of a run that was put back because another transaction held the job's row."""


class StoredStep(NamedTuple):
    """A stored step."""

    name: str
    kind: str
    """A value of `StepKind`."""
    run_id: int
    """The id of the run that began the step."""
    is_finished: bool
    """False while the job sleeps or waits."""
    result: str | None
    """JSON text."""


class Wait(NamedTuple):
    """A sleep, or a wait for a signal."""

    kind: str
    run_id: int
    is_finished: bool
    is_over: bool
    """True if the end of the wait has come, by the server's clock."""
    left: float | None
    """Seconds until the end of the wait; None if it has no end."""


_WAIT = """
          CAST(s.kind AS text), s.run_id, s.finished_at IS NOT NULL, coalesce(s.until <= c.now, false),
          CASE WHEN s.until IS NOT NULL THEN CAST(extract(epoch FROM s.until - c.now) AS float8) END"""
"""The columns of a `Wait`, by the time `c.now`."""


class StepQueries:
    """The statements about steps and signals. `lock_timeout` limits the waits in the transactions of tasks."""

    def __init__(self, tables: Tables, lock_timeout: float | None = None) -> None:
        self.load: LoadSteps = LoadSteps(tables)
        self.hold: HoldLease = HoldLease(tables)
        self.record: RecordStep = RecordStep(tables)
        self.record_in_session: RecordStepInSession = RecordStepInSession(tables, lock_timeout)
        self.times_snoozed: TimesSnoozed = TimesSnoozed(tables)
        self.look_at_wait: LookAtWait = LookAtWait(tables)
        self.open_wait: OpenWait = OpenWait(tables)
        self.end_wait: EndWait = EndWait(tables)
        self.take_signal: TakeSignal = TakeSignal(tables)
        self.put_off: PutOff = PutOff(tables)


class LoadSteps(Statement):
    """Read the steps of a job."""

    text: ClassVar[str] = """
        SELECT s.name, CAST(s.kind AS text), s.run_id, s.finished_at IS NOT NULL, CAST(s.result AS text)
        FROM $steps s WHERE s.job_id = CAST(:of_job AS bigint) ORDER BY s.number, s.started_at"""

    def __call__(self, connection: sa.Connection, job_id: int) -> list[StoredStep]:
        """Return the steps of a job, in the order in which they began."""
        return [StoredStep(*row) for row in self._rows(connection, {"of_job": job_id})]


class HoldLease(Statement):
    """Lock a running job if the lease is still valid."""

    text: ClassVar[str] = (
        "SELECT j.id FROM $jobs j WHERE $has_lease AND $committed_to_disk FOR NO KEY UPDATE SKIP LOCKED"
    )

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._is_leased = _IsLeased(tables)

    def __call__(self, connection: sa.Connection, lease: Lease | Claimed) -> bool:
        """Lock the job's row until the transaction ends. Return False if the lease is lost. Raises `RowHeld`."""
        return bool(self._rows(connection, of_lease(lease))) or self._is_leased(connection, lease)


class _IsLeased(Statement):
    """Look why no row was locked."""

    text: ClassVar[str] = "SELECT j.id FROM $jobs j WHERE $has_lease AND $committed_to_disk"

    def __call__(self, connection: sa.Connection, lease: Lease | Claimed) -> bool:
        """Return False if the lease is lost. Otherwise the row was skipped, and `RowHeld` is raised."""
        if self._rows(connection, of_lease(lease)):
            raise RowHeld
        return False


class NewStep(NamedTuple):
    """A step that is about to be stored."""

    lease: Lease | Claimed
    name: str
    number: int
    result: str | None
    """JSON text."""
    took: float
    """Seconds that the step took."""


class RecordStep(Statement):
    """Store the result of a step, unless another transaction holds the job's row."""

    text: ClassVar[str] = read("record_step")

    _skip_locked = " SKIP LOCKED"

    def __init__(self, tables: Tables, lock_timeout: float | None = None, answer: str = "result") -> None:
        super().__init__(tables)
        waits = {"waits_briefly": waiting_at_most(lock_timeout), "skip_locked": self._skip_locked}
        self.pieces: Pieces = {**waits, "answer": answer}
        self._is_leased = _IsLeased(tables)

    def __call__(self, connection: sa.Connection, step: NewStep) -> str | None:
        """Store a step, and hold the job's row until the transaction ends. Return the result as stored.

        Raises `LeaseLost`, `RowHeld`, and `IntegrityError` if the step is stored already.
        """
        with row_held():
            rows = self._rows(connection, self.parameters(step))
        if not rows and not self._is_leased(connection, step.lease):
            raise LeaseLost
        return rows[0][0]  # type: ignore[no-any-return]

    @staticmethod
    def parameters(step: NewStep) -> dict[str, Any]:
        """Return the parameters of the statement."""
        values = {"step": step.name, "step_number": step.number, "step_result": step.result, "took": step.took}
        return of_lease(step.lease) | values


class RecordStepInSession(RecordStep):
    """Store the result of a step in the transaction of its task, waiting for the job's row if necessary.

    `lock_timeout` limits the wait, in seconds. The limit then applies to the rest of the transaction.
    """

    _skip_locked = ""


class TimesSnoozed(Statement):
    """Count how often an attempt was put back with an error, such as since another transaction held the job's row."""

    text: ClassVar[str] = """
        SELECT count(*) FROM $runs r JOIN $jobs j ON j.id = r.job_id
        WHERE r.job_id = CAST(:of_job AS bigint) AND r.attempt = CAST(:of_attempt AS bigint)
          AND r.outcome = 'snoozed' AND r.error_type = CAST(:of_type AS text) AND $of_this_job"""

    def __call__(self, connection: sa.Connection, job: Claimed, error_type: str) -> int:
        """Return the number of runs of this attempt that were snoozed with an error of this type."""
        values = {"of_job": job.job_id, "of_attempt": job.attempt, "of_type": error_type}
        return int(self._rows(connection, values)[0][0])


class LookAtWait(Statement):
    """Read a sleep or wait. The job's row is already locked."""

    text: ClassVar[str] = f"""
        SELECT {_WAIT}
        FROM $steps s CROSS JOIN (
          SELECT clock_timestamp() + CAST(:ahead AS float8) * INTERVAL '1 second' AS now OFFSET 0) c
        WHERE s.job_id = CAST(:of_job AS bigint) AND s.name = CAST(:step AS text)"""

    def __call__(self, connection: sa.Connection, job_id: int, name: str, *, ahead: float) -> Wait | None:
        """Return the sleep or wait of this name, as it will be in `ahead` seconds; None if there is none."""
        rows = self._rows(connection, {"of_job": job_id, "step": name, "ahead": ahead})
        return Wait(*rows[0]) if rows else None


class OpenWait(Statement):
    """Begin a sleep or wait. The job's row is already locked."""

    text: ClassVar[str] = f"""
        WITH s AS (
            INSERT INTO $steps (job_id, name, kind, number, run_id, until)
            VALUES (CAST(:of_job AS bigint), CAST(:step AS text), CAST(:step_kind AS text),
              CAST(:step_number AS integer), CAST(:lease_run_id AS bigint),
              clock_timestamp() + CAST(:length AS float8) * INTERVAL '1 second')
            RETURNING *
        )
        SELECT {_WAIT} FROM s CROSS JOIN (SELECT clock_timestamp() AS now OFFSET 0) c"""

    def __call__(
        self,
        connection: sa.Connection,
        lease: Lease | Claimed,
        name: str,
        number: int,
        kind: str,
        *,
        length: float | None,
    ) -> Wait:
        """Begin a sleep or wait, and return it. It ends after `length` seconds; if that is None, it never ends."""
        values: dict[str, Any] = {"of_job": lease.job_id, "lease_run_id": lease.run_id}
        values |= {"step": name, "step_number": number, "step_kind": kind, "length": length}
        return Wait(*self._rows(connection, values)[0])


class EndWait(Statement):
    """End a sleep or wait. The job's row is already locked."""

    text: ClassVar[str] = """
        UPDATE $steps SET finished_at = clock_timestamp(), kind = CAST(:step_kind AS text),
          result = CAST(CAST(:step_result AS text) AS jsonb)
        WHERE job_id = CAST(:of_job AS bigint) AND name = CAST(:step AS text)"""

    def __call__(
        self, connection: sa.Connection, job_id: int, name: str, *, kind: str, result: str | None = None
    ) -> None:
        """Store the end of the sleep or wait, and the step's `kind`. If a signal came, `result` is its payload."""
        values = {"of_job": job_id, "step": name, "step_kind": kind, "step_result": result}
        self._run(connection, values)


class TakeSignal(Statement):
    """Take the oldest signal with a given name from a job whose row is locked."""

    text: ClassVar[str] = """
        DELETE FROM $signals WHERE id = (
          SELECT min(s.id) FROM $signals s WHERE s.job_id = CAST(:of_job AS bigint) AND s.name = CAST(:signal AS text))
        RETURNING coalesce(CAST(payload AS text), 'null')"""

    def __call__(self, connection: sa.Connection, job_id: int, signal: str) -> str | None:
        """Delete the oldest signal, and return its payload as JSON text; None if there is no signal."""
        rows = self._rows(connection, {"of_job": job_id, "signal": signal})
        return rows[0][0] if rows else None


class PutOff(Statement):
    """Make a job due when its sleep or wait ends."""

    text: ClassVar[str] = """
        UPDATE $jobs j SET run_at = coalesce(s.until, 'infinity') FROM $steps s
        WHERE j.id = CAST(:of_job AS bigint) AND j.state = 'scheduled'
          AND s.job_id = j.id AND s.name = CAST(:step AS text)"""

    def __call__(self, connection: sa.Connection, job_id: int, name: str) -> None:
        """Set the due time of a job that has just been scheduled: the end of this wait, or never."""
        self._run(connection, {"of_job": job_id, "step": name})
