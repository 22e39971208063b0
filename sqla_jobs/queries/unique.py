"""Jobs of unique keys: inserted where a key is free, or found, held and changed where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    inspect,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import HAS_LIVE_KEY, LIVE, WAITING
from sqla_jobs.rules.unique import Unique

_KEYS, _IDS = (
    any_(bindparam(name, type_=ARRAY(kind)))
    for name, kind in (("keys", Text), ("ids", BigInteger))  # one plan for any number
)
_IS_LIVE: ColumnElement[bool] = literal_column(f"({HAS_LIVE_KEY})", Boolean)
_EPOCH: ColumnElement[Any] = literal_column("TIMESTAMPTZ '1970-01-01 UTC'", DateTime(timezone=True))


def start_of_period(length: Any) -> ColumnElement[Any]:
    """When the present period of that length began, by the server's clock. Periods are aligned to 1970-01-01 UTC."""
    return func.date_bin(length, func.clock_timestamp(), _EPOCH)


class Taken(NamedTuple):
    """The job that has a key."""

    id: int
    key: str
    state: str
    is_of_period: bool
    """Whether a job of the key, this one or another, was made in the present period of a `per=`."""


@dataclass(frozen=True, slots=True)
class UniqueJobs:
    """The statements for jobs of one policy, in the session of the caller. All times are the server's."""

    session: Session
    models: Models[Any]
    policy: Unique
    gates_of: Callable[[str], Mapping[str, str | None]] | None = None
    """The columns `gates` and `ordered_by` of a job with these arguments (JSON), where jobs have gates."""

    def insert(self, values: Mapping[str, Any], jobs: Mapping[str, str], *, any_conflict: bool) -> dict[str, int]:
        """A job for each key of `jobs` that is free, with these arguments (JSON); returns their ids by key.

        The insert waits for transactions that have taken one of the keys and are still open. With `any_conflict`
        every unique index counts, and not only that of live keys.
        """
        mapper = inspect(self.models.Job)
        given = {**values, **({} if self._period is None else {"unique_period": self._period})}
        row = _rows()
        gates = self._gates(row)
        columns = [mapper.columns[name] for name in (*given, *gates, "args", "unique_key")]
        selected = [
            value if isinstance(value, ColumnElement) else literal(value, mapper.columns[name].type)
            for name, value in given.items()
        ]
        rows = select(*selected, *gates.values(), row.c.args, row.c.unique_key)
        statement = insert(mapper.local_table).from_select(columns, rows)
        arbiter: dict[str, Any] = {"index_elements": ["unique_key"], "index_where": text(HAS_LIVE_KEY)}
        statement = statement.on_conflict_do_nothing(**({} if any_conflict else arbiter))
        job_id, key = (mapper.columns[name] for name in ("id", "unique_key"))
        found = self._execute(statement.returning(key, job_id), {"rows": self._as_rows(jobs)})
        return {row[0]: row[1] for row in found}

    def taken(self, keys: Collection[str]) -> list[Taken]:
        """The jobs that have these keys: the live one, else the one of the present period."""
        job = self.models.Job
        is_of_period = false() if self._period is None else job.unique_period.is_not_distinct_from(self._period)
        found = (
            select(job.id, job.unique_key, job.state, is_of_period)
            .where(job.unique_key == _KEYS, or_(_IS_LIVE, and_(job.unique_period.is_not(None), is_of_period)))
            .order_by(_IS_LIVE)
        )
        by_key: dict[str, Taken] = {}
        for one in (Taken(*row) for row in self._execute(found, {"keys": list(keys)})):
            is_of_period = one.is_of_period or one.key in by_key
            by_key[one.key] = one._replace(is_of_period=is_of_period)
        return list(by_key.values())

    def share(self, ids: Sequence[int], *, skip_locked: bool) -> set[int]:
        """Hold those that still wait, so that none starts before the caller commits."""
        held = self._with_keys(WAITING).with_for_update(read=True, skip_locked=skip_locked)
        return {row[0] for row in self._execute(held, {"ids": list(ids)})}

    def seize(self, ids: Sequence[int], *, skip_locked: bool) -> dict[int, str]:
        """Hold those that are still live and have a key, to change them; returns their states."""
        held = self._with_keys(LIVE).with_for_update(key_share=True, skip_locked=skip_locked)
        return {row[0]: row[1] for row in self._execute(held, {"ids": list(ids)})}

    def _with_keys(self, states: Sequence[str]) -> Any:
        """In the order of inserts, so that two callers that lock the same keys do not deadlock."""
        job = self.models.Job
        wanted = (job.id == _IDS, job.state.in_(states), job.unique_key.is_not(None))
        return select(job.id, job.state).where(*wanted).order_by(job.unique_key.collate("C"))

    def give_up(self, ids: Sequence[int]) -> None:
        """Running jobs, held by `seize`, go on without their keys."""
        job = self.models.Job
        self._execute(
            update(job).where(job.id == _IDS).values(unique_key=null(), unique_period=null()), {"ids": list(ids)}
        )

    def change(self, values: Mapping[str, Any], jobs: Mapping[int, str]) -> None:
        """Replace or update waiting jobs, held by `seize`: their arguments by id."""
        change = self._replace if self.policy.on_conflict == "replace" else self._update
        change(values, jobs)

    def _replace(self, values: Mapping[str, Any], jobs: Mapping[int, str]) -> None:
        """They become as if enqueued now. One that was delayed for `max_delay` keeps its place."""
        job, state = self.models.Job, values["state"]
        now = func.clock_timestamp()
        max_delay = self.policy.max_delay
        latest = None if max_delay is None else job.created_at + timedelta(seconds=max_delay)
        is_late = false() if latest is None else and_(job.state == "queued", latest <= now)
        asked = values.get("run_at", now)
        stays = and_(is_late, job.queue == values["queue"], job.priority == values["priority"])
        self._write(
            jobs,
            {
                **values,
                "state": case((is_late, "queued"), else_=str(state)),
                "run_at": asked if latest is None else func.least(asked, latest),
            },
            moves=not_(stays),
        )

    def _update(self, values: Mapping[str, Any], jobs: Mapping[int, str]) -> None:
        """They get these arguments and stay due as before."""
        job = self.models.Job
        kept = {name: value for name, value in values.items() if name not in ("state", "run_at", "queue")}
        self._write(jobs, kept, moves=job.priority != values["priority"])

    def _write(self, jobs: Mapping[int, str], values: dict[str, Any], *, moves: ColumnElement[bool]) -> None:
        """Those that move go to the end, also those that wait behind other gates from now on."""
        job = self.models.Job
        row = _rows()
        mine = job.id == cast(row.c.unique_key, BigInteger)
        gates = self._gates(row) or {"gates": null(), "ordered_by": null()}  # it may have been another task's
        is_elsewhere = or_(moves, job.gates.is_distinct_from(gates["gates"]))
        position = case((is_elsewhere, self.models.positions.next_value()), else_=job.position)
        values = {"headers": null(), "on_failure": null(), **values}
        changed = update(job).where(mine).values(**values, position=position, args=row.c.args, **gates)
        self._execute(changed, {"rows": self._as_rows({str(job_id): args for job_id, args in jobs.items()})})

    def _gates(self, row: Any) -> dict[str, Any]:
        if self.gates_of is None:
            return {}
        return {"gates": cast(row.c.gates, ARRAY(Text)), "ordered_by": row.c.ordered_by}

    def _as_rows(self, jobs: Mapping[str, str]) -> str:
        return "[" + ",".join(self._as_row(key, args) for key, args in jobs.items()) + "]"

    def _as_row(self, key: str, args: str) -> str:
        gates = {} if self.gates_of is None else self.gates_of(args)
        return f'{json.dumps({"unique_key": key, **gates})[:-1]},"args":{args}}}'

    @property
    def _period(self) -> Any:
        """The start of the present period, where the policy has periods."""
        if self.policy.per is None:
            return None
        return start_of_period(timedelta(seconds=self.policy.per))

    def _execute(self, statement: Any, parameters: dict[str, Any]) -> Any:
        return self.session.execute(
            statement,
            parameters,
            bind_arguments={"mapper": self.models.Job},
            execution_options={"synchronize_session": False},
        )


def _rows() -> Any:
    """The parameter `rows` as a table of arguments by key or by id."""
    columns = column("unique_key", Text), column("args", JSONB), column("gates", Text), column("ordered_by", Text)
    return (
        func.jsonb_to_recordset(cast(bindparam("rows", type_=Text), JSONB))
        .table_valued(*columns, name="given")
        .render_derived(with_types=True)
    )
