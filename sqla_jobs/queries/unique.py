"""Jobs with unique keys: inserted if the key is free, otherwise found, locked and changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import HAS_LIVE_KEY, NOT_RUNNING
from sqla_jobs.queries.expressions import message
from sqla_jobs.queries.values import TIMES
from sqla_jobs.rules.unique import Unique

_KEYS, _IDS = (
    sa.any_(sa.bindparam(name, type_=sa.ARRAY(kind)))
    for name, kind in (("keys", sa.Text), ("ids", sa.BigInteger))  # an array gives one plan for any number of values
)
_IS_LIVE: sa.ColumnElement[bool] = sa.literal_column(f"({HAS_LIVE_KEY})", sa.Boolean)
_LIVE_KEY: Any = {"index_elements": ["unique_key"], "index_where": sa.text(HAS_LIVE_KEY)}
_IS_NEW: sa.ColumnElement[bool] = sa.literal_column("xmax = 0", sa.Boolean)
"""True for a row that an INSERT has created.

A row that the INSERT changed instead was locked first, as its xmax shows.
"""
_EPOCH: sa.ColumnElement[Any] = sa.literal_column("TIMESTAMPTZ '1970-01-01 UTC'", sa.DateTime(timezone=True))
_NEW = "new_"
"""The prefix of parameters that hold column values."""
_CHANGED = (
    *("task", "priority", "max_attempts", "max_lost", "args", "headers", "on_failure", "gates", "ordered_by"),
    *("timeout", "retention", "expires_at"),
)
"""The columns that are set in a replaced job."""
_BEGUN = ("attempt", "started_at", "progress", "progress_message")
"""The columns about attempts, which a replaced job begins anew."""


def start_of_period(length: Any) -> sa.ColumnElement[Any]:
    """Return the start of the current period of this length, by the server's clock.

    Periods are aligned to 1970-01-01 UTC.
    """
    return sa.func.date_bin(length, sa.func.clock_timestamp(), _EPOCH)


_RAW = {"dml_strategy": "raw"}


class Holder(NamedTuple):
    """The job that has a key. Of a new job, only the id and the key are read."""

    id: int
    key: str
    state: str = ""
    batch_id: int | None = None
    message: str = ""
    """The message that notifies workers of the job."""


@dataclass(frozen=True, slots=True)
class UniqueJobs:
    """Runs the unique-key statements for jobs with the same column values, in the caller's session."""

    session: Session
    statements: Statements
    values: Mapping[str, Any]
    """The column values of each job. A timedelta in `TIMES` counts from now, by the server's clock."""
    gates_of: Callable[[str], Mapping[str, str | None]] | None = None
    """The function that returns a job's `gates` and `ordered_by`, given its arguments (JSON), if jobs have gates."""

    def insert(self, jobs: Mapping[str, str], *, any_conflict: bool) -> list[Holder]:
        """Insert a job for each free key in `jobs`, which maps keys to arguments (JSON).

        The insert waits for open transactions that have taken one of the keys. With `any_conflict` a conflict in any
        unique index counts, not only one in the index of live keys.
        """
        if len(jobs) > 1:
            return [Holder(*row) for row in self._put(self.statements.inserts[any_conflict], jobs.items())]
        [(key, args)] = jobs.items()
        row = {"unique_key": key, "args": args, **({} if self.gates_of is None else self.gates_of(args))}
        given = self._given | {f"{_NEW}{name}": value for name, value in row.items()}
        return [Holder(*row) for row in self._execute(self.statements.inserts_of_one[any_conflict], given, **_RAW)]

    def insert_plain(self, jobs: Iterable[str]) -> list[int]:
        """Insert jobs that are not unique, given their arguments (JSON). Return their ids, in order."""
        return [row.id for row in self._put(self.statements.inserts[False], ((None, args) for args in jobs))]

    def change(self, jobs: Mapping[str, str], *, has_begun: bool) -> list[tuple[Holder, bool]]:
        """Insert as `insert` does, and replace each waiting job that has a key. Return if each job is new, too.

        Other jobs that have a key are locked but not changed. The statement waits for locks on these jobs. Without
        `has_begun`, jobs that have been started stay unchanged, too. With it, the caller has locked the jobs, and knows
        that they have no steps.
        """
        rows = self._put(self.statements.change[has_begun], jobs.items())
        return [(Holder(*holder), is_new) for *holder, is_new in rows]

    def hold(self, keys: Collection[str]) -> dict[str, Holder]:
        """Return, by key, the job that has the key: the live job, or else the job of the current period.

        The jobs that wait are locked, so that none starts before the caller commits. One that has begun to run since is
        left out. The jobs are locked in the order in which inserts lock them, so that two callers do not deadlock.
        """
        taken = self._found(self.statements.taken, keys=list(keys)) if keys else {}
        waiting = [one.id for one in taken.values() if one.state in NOT_RUNNING]
        held = self._found(self.statements.held, ids=waiting) if waiting else {}
        return {key: one for key, one in taken.items() if one.state not in NOT_RUNNING} | held

    def give_up(self, keys: Collection[str]) -> list[str]:
        """Remove these keys from jobs that are running or have stored steps. The caller has locked the jobs.

        Return the messages that notify workers of those that wait.
        """
        given_up = self._execute(self.statements.give_up, {"keys": list(keys)}, synchronize_session="fetch")
        return [told for _, state, told in given_up.all() if state in NOT_RUNNING]

    def _put(self, statement: Any, jobs: Iterable[tuple[str | None, str]]) -> Any:
        rows = "[" + ",".join(self._as_row(key, args) for key, args in jobs) + "]"
        return self._execute(statement, self._given | {"rows": rows}, **_RAW)

    @property
    def _given(self) -> dict[str, Any]:
        return {
            f"{_NEW}{name}": value for name, value in self.values.items() if not isinstance(value, sa.ColumnElement)
        }

    def _found(self, statement: Any, **parameters: Any) -> dict[str, Holder]:
        return {holder.key: holder for holder in map(Holder._make, self._execute(statement, parameters))}

    def _as_row(self, key: str | None, args: str) -> str:
        gates = {} if self.gates_of is None else self.gates_of(args)
        return f'{json.dumps({"unique_key": key, **gates})[:-1]},"args":{args}}}'

    def _execute(self, statement: Any, parameters: dict[str, Any], **options: Any) -> Any:
        session, bound = self.session, {"mapper": self.statements.models.Job}
        if session.autoflush or session.dispatch.do_orm_execute or options != _RAW:
            return session.execute(statement, parameters, bind_arguments=bound, execution_options=options)
        # nobody would hear of it from the session, whose part takes as long as the server's
        return session.connection(bound).execute(statement, parameters)


def statements_for(models: Models[Any], policy: Unique, values: Mapping[str, Any], *, gated: bool) -> Statements:
    """Return the statements for jobs with values in these columns.

    The statements are built once unless a value is an expression.
    """
    delayed = tuple(name for name in TIMES if isinstance(values.get(name), timedelta))
    shape = models, (policy.max_delay, policy.per), tuple(values), delayed, gated
    if expressions := {name: value for name, value in values.items() if isinstance(value, sa.ColumnElement)}:
        return Statements(*shape, expressions)
    return _built(*shape)


class Statements:
    """The statements for jobs under one policy.

    All times are the server's. The statements use the mapped class, so the session's listeners see the written rows.
    """

    def __init__(
        self,
        models: Models[Any],
        policy: tuple[float | None, float | None],
        names: tuple[str, ...],
        delayed: tuple[str, ...],
        gated: bool,
        expressions: Mapping[str, sa.ColumnElement[Any]] | None = None,
    ) -> None:
        self.models: Models[Any] = models
        self._max_delay, self._per = policy
        columns = sa.inspect(models.Job).columns
        self._given: dict[str, Any] = {name: sa.bindparam(f"{_NEW}{name}", type_=columns[name].type) for name in names}
        for name in delayed:
            self._given[name] = sa.func.clock_timestamp() + sa.bindparam(f"{_NEW}{name}", type_=sa.Interval)
        self._given |= expressions or {}
        self._gated = gated

    @cached_property
    def inserts(self) -> tuple[Any, Any]:
        """Return two statements that insert a job for each row in `rows`, unless it conflicts with another job.

        For the first one, only a live job with the row's key counts; for the second one, any unique index.
        """
        return self._unless_conflict(self._insert)

    @cached_property
    def inserts_of_one(self) -> tuple[Any, Any]:
        """Return the same statements for one job, whose columns are parameters. They take the server less time."""
        given = self._columns(_ONE)
        return self._unless_conflict(insert(self.models.Job).values({column.key: given[column] for column in given}))

    def _unless_conflict(self, inserted: Any) -> tuple[Any, Any]:
        return (
            inserted.on_conflict_do_nothing(**_LIVE_KEY).returning(*self._holder[:2]),
            inserted.on_conflict_do_nothing().returning(*self._holder[:2]),
        )

    @cached_property
    def change(self) -> tuple[Any, Any]:
        """Return two statements that insert as `insert` does, and also change waiting jobs.

        Jobs that have been started may have steps. The snapshot of a statement may be older than its lock on such a
        job, so that only a later statement can look for them: the first one leaves these jobs unchanged.
        """
        return self._change(self.models.Job.started_at.is_(None)), self._change(sa.true())

    def _change(self, where: sa.ColumnElement[bool]) -> Any:
        new, waits = self._insert.excluded, sa.and_(self.models.Job.state.in_(NOT_RUNNING), where)
        changed = self._insert.on_conflict_do_update(**_LIVE_KEY, set_=self._replaced(new), where=waits)
        return changed.returning(*self._holder, _IS_NEW)

    @cached_property
    def taken(self) -> Any:
        """Return a query for each key's job of the current period, followed by the key's live job."""
        job, is_taken = self.models.Job, _IS_LIVE
        if self._per is not None:
            is_taken = sa.or_(is_taken, sa.and_(job.unique_period.is_not(None), job.unique_period == self._period))
        return sa.select(*self._holder).where(job.unique_key == _KEYS, is_taken).order_by(_IS_LIVE)

    @cached_property
    def held(self) -> Any:
        """Return a query that locks the jobs that have a key and are still waiting."""
        job = self.models.Job
        wanted = (job.id == _IDS, job.state.in_(NOT_RUNNING), job.unique_key.is_not(None))
        return sa.select(*self._holder).where(*wanted).order_by(job.unique_key.collate("C")).with_for_update(read=True)

    @cached_property
    def give_up(self) -> Any:
        """Return an update that removes the keys of jobs that are running or have stored steps."""
        job, step = self.models.Job, self.models.Step
        has_begun = sa.or_(job.state == "running", sa.select(step.job_id).where(step.job_id == job.id).exists())
        given_up = sa.update(job).where(job.unique_key == _KEYS, _IS_LIVE, has_begun)
        values = given_up.values(unique_key=sa.null(), unique_period=sa.null())
        return values.returning(job.id, job.state, message(job.queue, job.gates))

    @cached_property
    def _insert(self) -> Any:
        given = self._columns(_rows().c)
        return insert(self.models.Job).from_select([*given], sa.select(*given.values()))

    def _columns(self, row: Any) -> dict[Any, Any]:
        """Return the columns of a new job, with the values from `row` and those that all the jobs have in common."""
        given = self._given | {"args": row.args, "unique_key": row.unique_key}
        if self._per is not None:
            given["unique_period"] = sa.case((row.unique_key.is_not(None), self._period))
        if self._gated:
            given |= {"gates": sa.cast(row.gates, sa.ARRAY(sa.Text)), "ordered_by": row.ordered_by}
        columns = sa.inspect(self.models.Job).columns
        return {columns[name]: value for name, value in given.items()}

    @property
    def _holder(self) -> tuple[Any, ...]:
        job = self.models.Job
        return job.id, job.unique_key, job.state, job.batch_id, message(job.queue, job.gates)

    def _replaced(self, new: Any) -> dict[Any, Any]:
        """Return the column values of a replaced job, as if it were enqueued now.

        A job that has been delayed for `max_delay` keeps its position. A job that waits for a retry begins anew:
        only the runs that ended after its `created_at` count.
        """
        job = self.models.Job
        created_at = sa.case((job.started_at.is_(None), job.created_at), else_=new.created_at)
        latest = None if self._max_delay is None else created_at + timedelta(seconds=self._max_delay)
        is_late = sa.false() if latest is None else sa.and_(job.state == "queued", latest <= sa.func.clock_timestamp())
        moves = sa.or_(sa.not_(is_late), self._is_elsewhere(new))
        return {
            **{name: new[name] for name in (*_CHANGED, *_BEGUN)},
            **{own: new[own.key] for own in self._own_columns},
            "position": sa.case((moves, new.position), else_=job.position),
            "times_replaced": sa.func.coalesce(job.times_replaced, 0) + 1,
            "queue": new.queue,
            "state": sa.case((is_late, "queued"), (job.state == "blocked", "blocked"), else_=new.state),
            "run_at": new.run_at if latest is None else sa.func.least(new.run_at, latest),
            "created_at": created_at,
        }

    def _is_elsewhere(self, new: Any) -> sa.ColumnElement[bool]:
        """Return the condition that the changed job waits among other jobs than before.

        For a job with an ordered key, this means a different key.
        """
        job = self.models.Job
        is_elsewhere = sa.or_(
            job.priority != new.priority, job.gates.is_distinct_from(new.gates), job.queue != new.queue
        )
        return sa.case((job.ordered_by == new.ordered_by, sa.false()), else_=is_elsewhere)

    @property
    def _own_columns(self) -> list[Any]:
        """Return the application's own columns that can be set."""
        columns = sa.inspect(self.models.Job).local_table.columns
        return [one for one in columns if one.key not in JobMixin.__annotations__ and one.computed is None]

    @property
    def _period(self) -> Any:
        """Return the start of the current period, if there are periods."""
        return start_of_period(timedelta(seconds=self._per or 0))


_built = lru_cache(maxsize=256)(Statements)


class _ONE:
    """The columns of one row, as parameters."""

    unique_key, gates, ordered_by = (
        sa.bindparam(f"{_NEW}{name}", type_=sa.Text) for name in ("unique_key", "gates", "ordered_by")
    )
    args = sa.cast(sa.bindparam(f"{_NEW}args", type_=sa.Text), JSONB)


def _rows() -> Any:
    """Return the parameter `rows` as a table of arguments by key."""
    columns = (
        sa.column("unique_key", sa.Text),
        sa.column("args", JSONB),
        sa.column("gates", sa.Text),
        sa.column("ordered_by", sa.Text),
    )
    return (
        sa.func.jsonb_to_recordset(sa.cast(sa.bindparam("rows", type_=sa.Text), JSONB))
        .table_valued(*columns, name="given")
        .render_derived(with_types=True)
    )
