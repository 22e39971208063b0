"""The steps of running jobs, and the signals to them.

Each write happens in a transaction that has locked the job's row and checked its lease. So a run that has lost the
lease stores nothing. On the library's own connections no statement waits for that row, since others need these
connections: `RowHeld` is raised, and the caller tries again. A step is recorded by a plain INSERT with a primary key.
So if a COMMIT that was given up arrives late, it cannot store a step for a second time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Integer,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from sqla_jobs.errors import LeaseLost, RowHeld
from sqla_jobs.queries.expressions import (
    Tables,
    committed_to_disk,
    is_of_job,
    leased,
    row_held,
    seconds,
    waiting_at_most,
)
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import Claimed, Lease
from sqla_jobs.rules.outcomes import type_name


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


class StepQueries:
    """The statements about steps and signals. `lock_timeout` limits the waits in the transactions of tasks."""

    def __init__(self, tables: Tables, lock_timeout: float | None = None) -> None:
        self.load: LoadSteps = LoadSteps(tables)
        self.hold: HoldLease = HoldLease(tables)
        self.record: RecordStep = RecordStep(tables)
        self.record_in_session: RecordStepInSession = RecordStepInSession(tables, lock_timeout)
        self.times_held: TimesHeld = TimesHeld(tables)
        self.look_at_wait: LookAtWait = LookAtWait(tables)
        self.open_wait: OpenWait = OpenWait(tables)
        self.end_wait: EndWait = EndWait(tables)
        self.take_signal: TakeSignal = TakeSignal(tables)
        self.put_off: PutOff = PutOff(tables)


class LoadSteps(Statement):
    """Read the steps of a job."""

    def __call__(self, connection: Connection, job_id: int) -> list[StoredStep]:
        """Return the steps of a job, in the order in which they began."""
        return [StoredStep(*row) for row in self._rows(connection, {"of_job": job_id})]

    def sql(self) -> Any:
        steps = self.tables.steps
        columns = (cast(steps.c.kind, Text), steps.c.run_id, steps.c.finished_at.is_not(None))
        found = select(steps.c.name, *columns, cast(steps.c.result, Text))
        return found.where(steps.c.job_id == _OF_JOB).order_by(steps.c.number, steps.c.started_at)


class HoldLease(Statement):
    """Lock a running job if the lease is still valid."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._is_leased = _IsLeased(tables)

    def __call__(self, connection: Connection, lease: Lease | Claimed) -> bool:
        """Lock the job's row until the transaction ends. Return False if the lease is lost. Raises `RowHeld`."""
        return bool(self._rows(connection, _of_lease(lease))) or self._is_leased(connection, lease)

    def sql(self) -> Any:
        return _leased(self.tables).with_for_update(key_share=True, skip_locked=True)


class _IsLeased(Statement):
    """Look why no row was locked."""

    def __call__(self, connection: Connection, lease: Lease | Claimed) -> bool:
        """Return False if the lease is lost. Otherwise the row was skipped, and `RowHeld` is raised."""
        if self._rows(connection, _of_lease(lease)):
            raise RowHeld
        return False

    def sql(self) -> Any:
        return _leased(self.tables)


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

    _skip_locked = True

    def __init__(self, tables: Tables, lock_timeout: float | None = None) -> None:
        super().__init__(tables)
        self._lock_timeout = lock_timeout
        self._is_leased = _IsLeased(tables)

    def __call__(self, connection: Connection, step: NewStep) -> str | None:
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
        return _of_lease(step.lease) | values

    def sql(self) -> Any:
        steps = self.tables.steps
        mine = _leased(self.tables).where(waiting_at_most(self._lock_timeout))
        mine = mine.with_for_update(key_share=True, skip_locked=self._skip_locked)
        held = mine.cte("held").prefix_with("MATERIALIZED")
        now = func.clock_timestamp()
        row = select(
            held.c.id,
            _NAME,
            literal_column("'step'"),
            cast(bindparam("step_number", type_=Integer), Integer),
            _RUN,
            now - seconds(bindparam("took", type_=Double)),
            now,
            cast(bindparam("step_result", type_=Text), JSONB),
        )
        columns = ["job_id", "name", "kind", "number", "run_id", "started_at", "finished_at", "result"]
        return insert(steps).from_select(columns, row).returning(cast(steps.c.result, Text).label("result"))


class RecordStepInSession(RecordStep):
    """Store the result of a step in the transaction of its task, waiting for the job's row if necessary.

    `lock_timeout` limits the wait, in seconds. The limit then applies to the rest of the transaction.
    """

    _skip_locked = False


class TimesHeld(Statement):
    """Count how often an attempt was put back because another transaction held the job's row."""

    def __call__(self, connection: Connection, job: Claimed) -> int:
        """Return the number of runs of this attempt that ended so."""
        return int(self._rows(connection, {"of_job": job.job_id, "of_attempt": job.attempt})[0][0])

    def sql(self) -> Any:
        jobs, runs = self.tables.jobs, self.tables.runs
        ended_so = (runs.c.outcome == "snoozed", runs.c.error_type == HELD, is_of_job(runs, jobs))
        attempt = bindparam("of_attempt", type_=BigInteger)
        mine = select(func.count()).join(jobs, jobs.c.id == runs.c.job_id)
        return mine.where(runs.c.job_id == _OF_JOB, runs.c.attempt == attempt, *ended_so)


class LookAtWait(Statement):
    """Read a sleep or wait. The job's row is already locked."""

    def __call__(self, connection: Connection, job_id: int, name: str, *, ahead: float) -> Wait | None:
        """Return the sleep or wait of this name, as it will be in `ahead` seconds; None if there is none."""
        rows = self._rows(connection, {"of_job": job_id, "step": name, "ahead": ahead})
        return Wait(*rows[0]) if rows else None

    def sql(self) -> Any:
        steps = self.tables.steps
        now = func.clock_timestamp() + seconds(bindparam("ahead", type_=Double))
        return select(*_wait(steps, now)).where(steps.c.job_id == _OF_JOB, steps.c.name == _NAME)


class OpenWait(Statement):
    """Begin a sleep or wait. The job's row is already locked."""

    def __call__(
        self, connection: Connection, lease: Lease | Claimed, name: str, number: int, kind: str, *, length: float | None
    ) -> Wait:
        """Begin a sleep or wait, and return it. It ends after `length` seconds; if that is None, it never ends."""
        values: dict[str, Any] = {"of_job": lease.job_id, "lease_run_id": lease.run_id}
        values |= {"step": name, "step_number": number, "step_kind": kind, "length": length}
        return Wait(*self._rows(connection, values)[0])

    def sql(self) -> Any:
        steps = self.tables.steps
        return (
            insert(steps)
            .values(
                job_id=_OF_JOB,
                name=_NAME,
                kind=cast(bindparam("step_kind", type_=Text), Text),
                number=bindparam("step_number", type_=Integer),
                run_id=_RUN,
                until=func.clock_timestamp() + seconds(bindparam("length", type_=Double)),
            )
            .returning(*_wait(steps, func.clock_timestamp()))
        )


class EndWait(Statement):
    """End a sleep or wait. The job's row is already locked."""

    def __call__(self, connection: Connection, job_id: int, name: str, *, kind: str, result: str | None = None) -> None:
        """Store the end of the sleep or wait, and the step's `kind`. If a signal came, `result` is its payload."""
        values = {"of_job": job_id, "step": name, "step_kind": kind, "step_result": result}
        self._run(connection, values)

    def sql(self) -> Any:
        steps = self.tables.steps
        return (
            update(steps)
            .where(steps.c.job_id == _OF_JOB, steps.c.name == _NAME)
            .values(
                finished_at=func.clock_timestamp(),
                kind=cast(bindparam("step_kind", type_=Text), Text),
                result=cast(bindparam("step_result", type_=Text), JSONB),
            )
        )


class TakeSignal(Statement):
    """Take the oldest signal with a given name from a job whose row is locked."""

    def __call__(self, connection: Connection, job_id: int, signal: str) -> str | None:
        """Delete the oldest signal, and return its payload as JSON text; None if there is no signal."""
        rows = self._rows(connection, {"of_job": job_id, "signal": signal})
        return rows[0][0] if rows else None

    def sql(self) -> Any:
        signals = self.tables.signals
        first = select(func.min(signals.c.id)).where(
            signals.c.job_id == _OF_JOB, signals.c.name == bindparam("signal", type_=Text)
        )
        payload = func.coalesce(cast(signals.c.payload, Text), literal_column("'null'"))
        return delete(signals).where(signals.c.id == first.scalar_subquery()).returning(payload)


class PutOff(Statement):
    """Make a job due when its sleep or wait ends."""

    def __call__(self, connection: Connection, job_id: int, name: str) -> None:
        """Set the due time of a job that has just been scheduled: the end of this wait, or never."""
        self._run(connection, {"of_job": job_id, "step": name})

    def sql(self) -> Any:
        jobs, steps = self.tables.jobs, self.tables.steps
        until = func.coalesce(steps.c.until, literal_column("TIMESTAMPTZ 'infinity'"))
        is_wait = (steps.c.job_id == jobs.c.id) & (steps.c.name == _NAME)
        is_scheduled = (jobs.c.id == _OF_JOB) & (jobs.c.state == literal_column("'scheduled'"))
        return update(jobs).where(is_scheduled, is_wait).values(run_at=until)


HELD: str = type_name(RowHeld)
"""The error type of a run that was put back because another transaction held the job's row."""
_OF_JOB = bindparam("of_job", type_=BigInteger)
_NAME: Any = cast(bindparam("step", type_=Text), Text)
_RUN: Any = cast(bindparam("lease_run_id", type_=BigInteger), BigInteger)


def _of_lease(lease: Lease | Claimed) -> dict[str, Any]:
    return {
        "lease_job_id": lease.job_id,
        "lease_run_id": lease.run_id,
        "lease_process_id": lease.process_id,
    }


def _leased(tables: Tables) -> Any:
    """Return a query for a job whose lease is valid.

    Where it locks the row, the lock is NO KEY UPDATE, as everywhere: the foreign key of a step takes KEY SHARE.
    """
    jobs = tables.jobs
    process = bindparam("lease_process_id", type_=Uuid)
    lease = leased(jobs, bindparam("lease_job_id", type_=BigInteger), _RUN, process)
    return select(jobs.c.id).where(lease, committed_to_disk())


def _wait(steps: Any, now: Any) -> tuple[Any, ...]:
    left = cast(func.extract("epoch", steps.c.until - now), Double)
    is_over = func.coalesce(steps.c.until <= now, literal_column("false"))
    return (
        cast(steps.c.kind, Text),
        steps.c.run_id,
        steps.c.finished_at.is_not(None),
        is_over,
        case((steps.c.until.is_(None), null()), else_=left),
    )
