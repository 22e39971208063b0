"""The deletion of jobs and their runs. Jobs that rows of the application refer to stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    and_,
    any_,
    bindparam,
    column,
    delete,
    exists,
    func,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.expressions import array_of, seconds
from sqla_jobs.queries.limits import keeps_others_waiting

ctid: ColumnElement[Any] = literal_column("ctid")
"""The place of a row's version, in a statement over one table. A row that the statement has locked stays there.

If another session has changed a row after the statement's snapshot, the statement locks the new version, which the
snapshot does not see. A look by ctid does not find that row, and skips it. A look by id would find it, although
conditions on other rows (its last error, a rival for its key) were checked with the old version."""


class Reference(NamedTuple):
    """A foreign key to jobs that forbids their deletion: `columns` of `schema.table` refer to the jobs' `targets`."""

    name: str
    """The name as SQL, quoted if necessary."""
    qualified: str
    """`schema.table` as SQL, quoted if necessary."""
    schema: str
    table: str
    columns: tuple[str, ...]
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.schema}.{self.table} ({', '.join(self.columns)})"

    @property
    def remedy(self) -> str:
        """Return the remedy: how to make the jobs deletable, and what not to do."""
        return (
            "To let jobs go and keep those rows, declare it ON DELETE SET NULL, or do without the foreign key: "
            f"ALTER TABLE {self.qualified} DROP CONSTRAINT {self.name}; ON DELETE CASCADE would delete those rows, too"
        )

    def to(self, jobs: str) -> ColumnElement[bool]:
        """Return a condition: a row refers to the job. `jobs` is the quoted name of their table.

        A key of several columns of which one is NULL refers to nothing.
        """
        referring = table(self.table, *map(column, self.columns), schema=self.schema)
        pairs = zip(self.columns, self.targets, strict=True)
        same = [referring.c[mine] == literal_column(f"{jobs}.{target}") for mine, target in pairs]
        return exists().select_from(referring).where(and_(*same))


class Removal:
    """The statements over one set of models. They run in the transaction of a session."""

    def __init__(self, models: Models[Any]) -> None:
        self._models = models
        self._job: Any = models.Job
        self._table = models.tables["jobs"]
        self._runs = models.tables["runs"]
        self._on = {"mapper": models.Job}

    def references(self, session: Session) -> list[ColumnElement[bool]]:
        """Return a condition for each foreign key that forbids a deletion: a row refers to the job.

        Tables that this role may not read are left out. For these the server refuses the deletion itself.
        """
        return [refers for _, refers in self._references(session)]

    def referring(self, session: Session, job_id: int) -> list[Reference]:
        """Return the foreign keys by which rows refer to the job and forbid its deletion."""
        return [reference for reference, number in self.kept(session, [self._job.id == job_id]) if number]

    def kept(
        self, session: Session, conditions: Sequence[ColumnElement[bool]], *, most: int | None = None
    ) -> list[tuple[Reference, int]]:
        """Return, by foreign key, the number of jobs that it keeps from being deleted, counted up to `most`."""
        found: list[tuple[Reference, int]] = []
        for reference, refers in self._references(session):
            some: Any = select(literal_column("1")).select_from(self._job).where(*conditions, refers).limit(most)
            number = select(func.count()).select_from(some.subquery())
            found.append((reference, session.scalar(number, bind_arguments=self._on) or 0))
        return found

    def _references(self, session: Session) -> list[tuple[Reference, ColumnElement[bool]]]:
        """Return each such foreign key with a condition: a row refers by it to the job."""
        preparer = session.connection(self._on).dialect.identifier_preparer
        jobs = preparer.format_table(self._table)
        rows = session.execute(_REFERENCES, {"jobs": jobs}, bind_arguments=self._on)
        found = [
            Reference(name, qualified, schema, referring, (*mine,), (*map(preparer.quote, theirs),))
            for name, qualified, schema, referring, mine, theirs in rows
        ]
        return [(reference, reference.to(jobs)) for reference in found]

    def ended(self, state: str, older_than: float) -> list[ColumnElement[bool]]:
        """Return the conditions: the job ended in `state`, `older_than` seconds ago, and keeps no other job waiting."""
        moment = func.statement_timestamp() - seconds(older_than)
        ended = [self._job.state == literal_column(f"'{state}'"), self._job.finished_at < moment]
        return [*ended, ~keeps_others_waiting(self._models)] if state == JobState.failed else ended

    def find(
        self,
        session: Session,
        conditions: Sequence[ColumnElement[bool]],
        references: Sequence[ColumnElement[bool]],
        *,
        offset: int,
        limit: int,
    ) -> list[int]:
        """Return at most `limit` jobs that meet the conditions and to which no row refers, the oldest first."""
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
        """Delete those of the jobs, with their runs, that still meet the conditions. Return their number.

        Jobs that run, are locked, were changed since the statement began, or are referred to, are skipped.
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
        # on the entity, so that listeners of the session see it
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
