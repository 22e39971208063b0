"""SQL expressions that several statements use."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from psycopg.errors import LockNotAvailable
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.selectable import ScalarSelect, SelectBase, TableValuedAlias

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.errors import RowHeld
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.pieces import COMMITTED_TO_DISK

_DIALECT: Any = PGDialect_psycopg()  # type: ignore[no-untyped-call]
_NUMBERING: Any = PGDialect_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


class Rendered(NamedTuple):
    """A statement in psycopg's format, with the parameters that do not change between calls."""

    text: str
    fixed: dict[str, Any]


def rendered(statement: Any) -> Rendered:
    """Return a statement in psycopg's format, and the parameters that are the same in every call."""
    compiled = statement.compile(dialect=_DIALECT)
    return Rendered(str(compiled), dict(compiled.params))


def numbered(statement: Any) -> tuple[str, list[str], dict[str, Any]]:
    """Return a statement with numbered parameters, their names in order, and those that are the same in every call."""
    compiled = statement.compile(dialect=_NUMBERING)
    return str(compiled), list(compiled.positiontup), dict(compiled.params)


def written(condition: Callable[[Any], sa.ColumnElement[bool]], row: str, *columns: str) -> str:
    """Return the SQL text of a condition on these columns of a row. `row` is the row's name in the text."""
    return rendered(condition(sa.table(row, *map(sa.column, columns)).c)).text


class Tables:
    """The tables behind the mapped classes; their columns are looked up by name.

    `jobs.c.ctid` is the physical location of a row version. A row that the same statement has locked cannot move, so it
    can be found again there without an index. A row that has been changed since the statement began is not found.
    """

    positions: sa.Sequence
    run_ids: sa.Sequence

    def __init__(self, models: Models[Any], schema: str | None = None) -> None:
        jobs = _table(models.Job, schema)
        columns = [sa.column(kind.name, kind.type) for kind in jobs.c]
        self.jobs: Any = sa.table(jobs.name, *columns, sa.column("ctid"), schema=jobs.schema)
        self.runs: Any = _table(models.Run, schema)
        self.processes: Any = _table(models.Process, schema)
        self.queues: Any = _table(models.Queue, schema)
        self.paused_tasks: Any = _table(models.PausedTask, schema)
        self.limits: Any = _table(models.Limit, schema)
        self.starts: Any = _table(models.Start, schema)
        self.schedules: Any = _table(models.Schedule, schema)
        self.ticks: Any = _table(models.Tick, schema)
        self.batches: Any = _table(models.Batch, schema)
        self.edges: Any = _table(models.Edge, schema)
        self.steps: Any = _table(models.Step, schema)
        self.signals: Any = _table(models.Signal, schema)
        self.audit: Any = _table(models.Audit, schema)
        self.channel: str = models.channel
        """The channel on which workers are notified of jobs that may start."""
        self._on = {"mapper": models.Job}
        self.positions, self.run_ids = (
            sa.Sequence(sequence.name, schema=sequence.schema or schema)
            for sequence in (models.positions, models.run_ids)
        )

    def connection(self, session: Session) -> sa.Connection:
        """Return the session's connection to the jobs' database."""
        return session.connection(bind_arguments=self._on)

    def is_of_jobs(self, session: Session, connection: sa.Connection) -> bool:
        """Return whether this connection of the session is the connection to the jobs' database."""
        return session.get_bind(self._on["mapper"]).engine is connection.engine


def _table(model: type[Any], schema: str | None) -> Any:
    mapped = sa.inspect(model).local_table
    return mapped if mapped.schema or schema is None else mapped.to_metadata(sa.MetaData(), schema=schema)


def unnest(name: str, **columns: tuple[str, Any]) -> TableValuedAlias:
    """Return array parameters as the columns of a table, given as column=(parameter, type)."""
    return _side_by_side(
        name,
        [sa.bindparam(parameter, type_=sa.ARRAY(kind)) for parameter, kind in columns.values()],
        {column_name: kind for column_name, (_, kind) in columns.items()},
    )


def unnest_text(name: str, **columns: tuple[str | sa.ColumnElement[str], Any]) -> TableValuedAlias:
    """Return `unnest` of array literals from `numbers` and `texts`, which psycopg sends faster than lists.

    If an array is shorter than the others, its column is NULL in the remaining rows.
    """
    return _side_by_side(
        name,
        [
            sa.cast(sa.bindparam(written, type_=sa.Text) if isinstance(written, str) else written, sa.ARRAY(kind))
            for written, kind in columns.values()
        ],
        {column_name: kind for column_name, (_, kind) in columns.items()},
    )


def _side_by_side(name: str, arrays: list[Any], columns: dict[str, Any]) -> TableValuedAlias:
    named = [sa.column(column_name, kind) for column_name, kind in columns.items()]
    return sa.func.unnest(*arrays).table_valued(*named).render_derived(name=name)


def in_state(jobs: Any, state: str) -> sa.ColumnElement[bool]:
    """Return the condition that a job is in `state`.

    The state is a literal, since a generic plan with a parameter could not use the index.
    """
    said: sa.ColumnElement[bool] = jobs.c.state == sa.literal_column(f"'{state}'")
    return said


def is_among(jobs: Any) -> sa.ColumnElement[bool]:
    """Return the condition that the parameters of an `Among` include the job."""
    only, set_aside = (
        sa.cast(sa.bindparam(name, type_=sa.Text), sa.ARRAY(sa.BigInteger)) for name in ("only_ids", "set_aside_ids")
    )
    return sa.and_(jobs.c.id != sa.all_(set_aside), sa.or_(only.is_(None), jobs.c.id == sa.any_(only)))


def committed_to_disk() -> sa.ColumnElement[bool]:
    """Return a condition that is always true and makes COMMIT wait for the disk, even if it does not by default.

    A server crash can undo an asynchronous commit, and with it the numbers that a sequence has handed out.
    """
    return sa.literal_column(COMMITTED_TO_DISK, sa.Boolean)


def is_of_job(runs: Any, jobs: Any) -> sa.ColumnElement[bool]:
    """Return the condition that a run counts among the job's attempts. The runs of the job that it replaced do not."""
    return sa.or_(jobs.c.times_replaced.is_(None), runs.c.finished_at >= jobs.c.created_at)


def waiting_at_most(lock_timeout: float | None) -> str:
    """Return SQL text that is always true, and limits each wait for a lock from now on, in seconds.

    The limit applies until the transaction ends. With `None` the transaction keeps its own limit.
    """
    if lock_timeout is None:
        return "true"
    return f"set_config('lock_timeout', '{1000 * lock_timeout:.0f}ms', true) IS NOT NULL"


@contextmanager
def row_held() -> Generator[None]:
    """Raise `RowHeld` if a wait for a lock takes too long."""
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != LockNotAvailable.sqlstate:
            raise
        raise RowHeld from None


def seconds(value: Any) -> sa.ColumnElement[Any]:
    """Return a number of seconds as an interval."""
    return sa.cast(value, sa.Double).op("*", return_type=sa.Interval())(sa.literal_column("INTERVAL '1 second'"))


def locked(rows: Any, name: str, *, of: Any) -> sa.CTE:
    """Return a CTE that locks `rows` once. Rows that are already locked are skipped.

    The lock is NO KEY UPDATE, so that no job is skipped because another session is checking a foreign key to it. The
    CTE is MATERIALIZED, so that the planner cannot lock more rows than the limit allows.
    """
    chosen: sa.Select[Any] = rows.with_for_update(skip_locked=True, key_share=True, of=of)
    return chosen.cte(name).prefix_with("MATERIALIZED")


def lock_key(tables: Tables, what: str) -> str:
    """Return the SQL text of the key of an advisory lock that belongs to these tables.

    The key is made from the table's oid, since some programs name the schema and others use their search path.
    """
    name = quoted(tables.jobs).replace("'", "''")
    return f"hashtextextended('sqla_jobs {what}', CAST(CAST('{name}' AS regclass) AS bigint))"


def last_run_of(run: Any, job_id: Any) -> ScalarSelect[Any]:
    """Return the id of a job's last run, as a subquery. `run` is the mapped class."""
    of_job = aliased(run)
    # + 0: without it the planner may walk the index of ids backwards, past the runs of all other jobs
    last = sa.select(sa.func.max(of_job.id + 0)).where(of_job.job_id == job_id)
    return last.correlate_except(of_job).scalar_subquery()


def array_of(rows: SelectBase) -> sa.ColumnElement[Any]:
    """Return the single column of `rows` as an array.

    The planner expects few elements in an array, so `key = ANY (array)` looks each row up by its key, however many
    there are.
    """
    return sa.func.array(rows.scalar_subquery())


def message_of(jobs: Any) -> sa.ColumnElement[str]:
    """Return the message about a queued job."""
    return message(jobs.c.queue, jobs.c.gates)


def message(queue: Any, gates: Any) -> sa.ColumnElement[str]:
    """Return the message about a queued job: its queue's name, marked if the job waits behind limits."""
    return sa.func.concat(queue, sa.case((gates.is_not(None), sa.literal_column(f"'{LIMITS}'"))))


def quoted(named: Any) -> str:
    """Return the quoted name of a table or a sequence."""
    preparer = _DIALECT.identifier_preparer
    is_sequence = isinstance(named, sa.Sequence)
    return str(preparer.format_sequence(named) if is_sequence else preparer.format_table(named))


LAG = """CASE WHEN NOT pg_is_in_recovery() THEN NULL
    WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0.0
    ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 END"""
"""SQL for the seconds since the last transaction that a standby has replayed, or 0 if it has replayed all; else NULL.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL
"""
