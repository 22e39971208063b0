"""Deleting jobs together with their runs, but not those that rows of the application refer to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Text,
    all_,
    and_,
    any_,
    bindparam,
    case,
    column,
    delete,
    exists,
    func,
    literal,
    literal_column,
    select,
    table,
    text,
    tuple_,
)
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.expressions import array_of, seconds
from sqla_jobs.queries.limits import keeps_others_waiting

ctid: ColumnElement[Any] = literal_column("ctid")
"""Where a version of a row lies, in a statement over one table. A row that the statement has locked stays there.

A row that somebody changed after the statement's snapshot is locked in its new version, which that snapshot does not
see: looked for by its ctid it is not found, and left alone. By its id it would be found, and conditions that look at
other rows (its last error, a rival for its key) would have been asked of the old version."""


class Reference(NamedTuple):
    """A foreign key to jobs that forbids their deletion: `columns` of `schema.table` refer to the jobs' `targets`."""

    name: str
    """With quotes where it needs any, as it is in SQL."""
    qualified: str
    """`schema.table`, likewise."""
    schema: str
    table: str
    columns: tuple[str, ...]
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.schema}.{self.table} ({', '.join(self.columns)})"

    @property
    def remedy(self) -> str:
        """How to let the jobs go, and what not to do."""
        return (
            "To let jobs go and keep those rows, declare it ON DELETE SET NULL, or do without the foreign key: "
            f"ALTER TABLE {self.qualified} DROP CONSTRAINT {self.name}; ON DELETE CASCADE would delete those rows, too"
        )

    def to(self, jobs: str) -> ColumnElement[bool]:
        """Whether a row refers to the job at hand; `jobs` is the name of their table, with quotes where it needs any.

        A key of several columns of which one is NULL refers to nothing, and equals nothing.
        """
        referring = table(self.table, *map(column, self.columns), schema=self.schema)
        pairs = zip(self.columns, self.targets, strict=True)
        same = [referring.c[mine] == literal_column(f"{jobs}.{target}") for mine, target in pairs]
        return exists().select_from(referring).where(and_(*same))


class Place(NamedTuple):
    """A place among jobs in the order of their ends, and of their ids within one moment."""

    moment: datetime
    job_id: int


class Found(NamedTuple):
    """The ids of some jobs, and the place of the last of those that were looked at; None: there is no more."""

    ids: list[int]
    beyond: Place | None


class Removal:
    """The statements over one set of models; on a session, in its transaction."""

    def __init__(self, models: Models[Any]) -> None:
        self._models = models
        self._job: Any = models.Job
        self._table = models.tables["jobs"]
        self._runs = models.tables["runs"]
        self._on = {"mapper": models.Job}

    def references(self, session: Session) -> list[ColumnElement[bool]]:
        """For each foreign key that forbids deleting a job to which a row refers, whether one does.

        Not of tables that this role may not read: there the server says so when the job is to go.
        """
        return [refers for _, refers in self._references(session)]

    def referring(self, session: Session, job_id: int) -> list[Reference]:
        """The foreign keys by which rows refer to the job, where they forbid deleting it."""
        return [reference for reference, number in self.kept(session, [self._job.id == job_id]) if number]

    def kept(
        self, session: Session, conditions: Sequence[ColumnElement[bool]], *, most: int | None = None
    ) -> list[tuple[Reference, int]]:
        """How many jobs that meet the conditions each foreign key keeps from being deleted, counted up to `most`."""
        found: list[tuple[Reference, int]] = []
        for reference, refers in self._references(session):
            some: Any = select(literal_column("1")).select_from(self._job).where(*conditions, refers).limit(most)
            number = select(func.count()).select_from(some.subquery())
            found.append((reference, session.scalar(number, bind_arguments=self._on) or 0))
        return found

    def _references(self, session: Session) -> list[tuple[Reference, ColumnElement[bool]]]:
        """Each such foreign key, and whether a row refers by it to the job at hand."""
        preparer = session.connection(self._on).dialect.identifier_preparer
        jobs = preparer.format_table(self._table)
        rows = session.execute(_REFERENCES, {"jobs": jobs}, bind_arguments=self._on)
        found = [
            Reference(name, qualified, schema, referring, (*mine,), (*map(preparer.quote, theirs),))
            for name, qualified, schema, referring, mine, theirs in rows
        ]
        return [(reference, reference.to(jobs)) for reference in found]

    def ended(self, state: str, older_than: float) -> list[ColumnElement[bool]]:
        """The conditions on a job that it ended in `state`, `older_than` seconds ago, and keeps no other waiting."""
        ended = self._is_older(state, older_than)
        return [*ended, ~keeps_others_waiting(self._models)] if state == JobState.failed else ended

    def _is_older(self, state: str, older_than: float) -> list[ColumnElement[bool]]:
        moment = func.statement_timestamp() - seconds(older_than)
        return [self._job.state == literal_column(f"'{state}'"), self._job.finished_at < moment]

    def is_of(self, tasks: Sequence[str]) -> ColumnElement[bool]:
        """The condition on a job that it is stored under one of these names."""
        return self._job.task == any_(literal([*tasks], ARRAY(Text)))  # type: ignore[no-any-return]

    def is_of_none(self, tasks: Sequence[str]) -> ColumnElement[bool]:
        """The condition on a job that it is stored under none of these names."""
        return self._job.task != all_(literal([*tasks], ARRAY(Text)))  # type: ignore[no-any-return]

    def find_among(
        self,
        session: Session,
        state: str,
        older_than: float,
        condition: ColumnElement[bool],
        *,
        beyond: Place | None,
        looked_at: int,
        limit: int,
    ) -> Found:
        """Look at the next jobs that ended in `state`, `older_than` seconds ago, the oldest first.

        Return at most `limit` of them that meet the condition.
        """
        job = self._job
        order = [job.finished_at, job.id]  # mostly by the index alone: few jobs end at the same moment
        place = func.row_number().over(order_by=order).label("place")
        ended = select(job.id, job.finished_at, condition.label("is_wanted"), place)
        ended = ended.where(*self._is_older(state, older_than)).order_by(*order)
        if beyond is not None:
            ended = ended.where(job.finished_at >= beyond.moment, tuple_(*order) > beyond)
        seen = ended.limit(looked_at).cte("seen")
        found = select(seen.c.id, seen.c.place).where(seen.c.is_wanted).order_by(seen.c.place).limit(limit).cte("found")
        rows = {each: select(func.count()).select_from(each).scalar_subquery() for each in (found, seen)}
        end = {each: select(func.max(each.c.place)).scalar_subquery() for each in (found, seen)}
        last = case((rows[found] == limit, end[found]), (rows[seen] == looked_at, end[seen]))
        wanted = func.array(select(found.c.id).scalar_subquery())
        ends = [
            select(column).where(seen.c.place == last).scalar_subquery() for column in (seen.c.finished_at, seen.c.id)
        ]
        row: Any = session.execute(select(wanted, *ends), bind_arguments=self._on).one()
        ids, moment, job_id = row
        return Found(ids, None if moment is None else Place(moment, job_id))

    def find(
        self,
        session: Session,
        conditions: Sequence[ColumnElement[bool]],
        references: Sequence[ColumnElement[bool]],
        *,
        offset: int,
        limit: int,
    ) -> list[int]:
        """At most `limit` jobs that meet the conditions and to which no row refers, the oldest first."""
        job = self._job
        wanted = select(job.id).where(*conditions, *(~one for one in references)).order_by(job.finished_at)
        return [*session.scalars(wanted.offset(offset).limit(limit), bind_arguments=self._on)]

    def remove(
        self,
        session: Session,
        ids: Sequence[int],
        conditions: Sequence[ColumnElement[bool]],
        references: Sequence[ColumnElement[bool]],
    ) -> int:
        """Delete those of the jobs, with their runs, that meet the conditions still. Returns how many went.

        Left alone are those that run, are locked, were changed since the statement began, or are referred to.
        """
        job, runs = self._job, self._runs
        named = job.id == any_(bindparam("ids", type_=ARRAY(BigInteger)))
        free = select(ctid.label("ctid")).where(named, job.state != "running", *conditions)
        free = free.where(*(~one for one in references)).select_from(job).with_for_update(skip_locked=True, of=job)
        locked = free.cte("locked").prefix_with("MATERIALIZED")
        chosen = any_(array_of(select(locked.c.ctid)))
        going = self._table.alias("going")
        gone = select(going.c.id).where(literal_column("going.ctid") == chosen)
        without = delete(runs).where(runs.c.job_id.in_(gone)).cte("without")
        # of the entity, so that listeners of the session see it
        statement = delete(job).where(ctid == chosen).returning(job.id).add_cte(without)
        options = {"synchronize_session": False}
        removed = session.execute(statement, {"ids": list(ids)}, bind_arguments=self._on, execution_options=options)
        return len(removed.all())


_REFERENCES = text(
    """
    SELECT quote_ident(reference.conname), quote_ident(space.nspname) || '.' || quote_ident(relname),
      space.nspname, referring.relname, mine.names, theirs.names
    FROM pg_constraint AS reference
    JOIN pg_class AS referring ON referring.oid = reference.conrelid
    JOIN pg_namespace AS space ON space.oid = referring.relnamespace
    CROSS JOIN LATERAL (
      SELECT array_agg(attname::text ORDER BY place)
      FROM unnest(reference.conkey) WITH ORDINALITY AS key(number, place)
      JOIN pg_attribute ON attrelid = reference.conrelid AND attnum = key.number
    ) AS mine(names)
    CROSS JOIN LATERAL (
      SELECT array_agg(attname::text ORDER BY place)
      FROM unnest(reference.confkey) WITH ORDINALITY AS key(number, place)
      JOIN pg_attribute ON attrelid = reference.confrelid AND attnum = key.number
    ) AS theirs(names)
    WHERE reference.confrelid = CAST(:jobs AS regclass) AND reference.contype = 'f'
      AND reference.confdeltype IN ('a', 'r')
      AND has_schema_privilege(space.oid, 'USAGE')
      AND (SELECT bool_and(has_column_privilege(conrelid, number, 'SELECT')) FROM unnest(conkey) AS number)
    ORDER BY 3, 4, 1
    """
)
