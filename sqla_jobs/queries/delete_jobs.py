"""The deletion of jobs and their runs. Jobs that application rows refer to are kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.edges import MarkDeleted
from sqla_jobs.queries.expressions import Tables, array_of, seconds
from sqla_jobs.queries.graphs import Graphs, is_past_own
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.rules.retention import Rule

ctid: sa.ColumnElement[Any] = sa.literal_column("ctid")
"""The physical location of a row version, in a statement over one table.

A row that the statement has locked cannot move. If another session has changed a row since the statement's snapshot,
the statement locks the new version, which the snapshot does not see. A lookup by ctid does not find that row, and so
skips it. A lookup by id would find the row, although conditions on other rows (the job's last error, a rival for its
key) were checked against the old version.
"""


class Reference(NamedTuple):
    """A foreign key to jobs that prevents their deletion: `columns` of `schema.table` refer to the jobs' `targets`."""

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
        """Return how to make the jobs deletable, and what not to do."""
        return (
            "To let jobs go and keep those rows, declare it ON DELETE SET NULL, or do without the foreign key: "
            f"ALTER TABLE {self.qualified} DROP CONSTRAINT {self.name}; ON DELETE CASCADE would delete those rows, too"
        )

    def to(self, jobs: str) -> sa.ColumnElement[bool]:
        """Return the condition that a row refers to the job.

        `jobs` is the quoted name of the jobs table. A multi-column key with a NULL in one column refers to nothing.
        """
        referring = sa.table(self.table, *map(sa.column, self.columns), schema=self.schema)
        pairs = zip(self.columns, self.targets, strict=True)
        same = [referring.c[mine] == sa.literal_column(f"{jobs}.{target}") for mine, target in pairs]
        return sa.exists().select_from(referring).where(sa.and_(*same))


class Place(NamedTuple):
    """A place in the order of ended jobs. They are ordered by the moment when they ended, and then by id."""

    moment: datetime
    job_id: int


class Found(NamedTuple):
    """The ids of the jobs found, and the place of the last job that was looked at, or None if no jobs are left."""

    ids: list[int]
    beyond: Place | None


class Removal:
    """The deletion statements for one set of models. They run in a session's transaction."""

    def __init__(self, models: Models[Any]) -> None:
        self.models = models
        self._job: Any = models.Job
        self._table = models.tables["jobs"]
        self._runs = models.tables["runs"]
        self._edges = models.tables["edges"]
        self._on = {"mapper": models.Job}

    def references(self, session: Session) -> list[sa.ColumnElement[bool]]:
        """Return a condition for each foreign key that forbids a deletion: that a row refers to the job.

        Tables that this role may not read are left out. For those tables, the server itself refuses the deletion.
        """
        return [refers for _, refers in self._references(session)]

    def kept(
        self, session: Session, conditions: Sequence[sa.ColumnElement[bool]], *, most: int | None = None
    ) -> list[tuple[Reference, int]]:
        """Return each foreign key with the number of jobs that it keeps from being deleted, counted up to `most`."""
        found: list[tuple[Reference, int]] = []
        for reference, refers in self._references(session):
            some: Any = sa.select(sa.literal_column("1")).select_from(self._job).where(*conditions, refers).limit(most)
            number = sa.select(sa.func.count()).select_from(some.subquery())
            found.append((reference, session.scalar(number, bind_arguments=self._on) or 0))
        return found

    def _references(self, session: Session) -> list[tuple[Reference, sa.ColumnElement[bool]]]:
        """Return each foreign key that forbids deletion, and the condition that a row refers to a job by that key."""
        preparer = session.connection(self._on).dialect.identifier_preparer
        jobs = preparer.format_table(self._table)
        edges = preparer.format_table(self._edges)
        rows = session.execute(_REFERENCES, {"jobs": jobs, "edges": edges}, bind_arguments=self._on)
        found = [
            Reference(name, qualified, schema, referring, (*mine,), (*map(preparer.quote, theirs),))
            for name, qualified, schema, referring, mine, theirs in rows
        ]
        return [(reference, reference.to(jobs)) for reference in found]

    def keeps_none_waiting(self) -> sa.ColumnElement[bool]:
        """Return the condition that the job is not a failed one that keeps the jobs of its ordered key waiting."""
        return ~keeps_others_waiting(self.models)  # type: ignore[no-any-return]

    def ended(self, state: str, older_than: float) -> list[sa.ColumnElement[bool]]:
        """Return the conditions that a job ended in `state` over `older_than` seconds ago and keeps no ordered key."""
        return [*self._is_older(state, older_than), self.keeps_none_waiting()]

    def _is_older(self, state: str, older_than: float) -> list[sa.ColumnElement[bool]]:
        moment = sa.func.statement_timestamp() - seconds(older_than)
        return [self._job.state == sa.literal_column(f"'{state}'"), self._job.finished_at < moment]

    def is_under(self, rule: Rule) -> sa.ColumnElement[bool]:
        """Return the condition that a rule is about the job, whose state and age are not looked at."""
        task, names = self._job.task, sa.literal([*(rule.only or rule.others)], sa.ARRAY(sa.Text))
        is_under: sa.ColumnElement[bool] = task == sa.any_(names) if rule.only else task != sa.all_(names)
        return is_under if rule.for_all else is_under & self._job.retention.is_(None)

    def find_past_own(self, session: Session, *, after: int, limit: int) -> list[int]:
        """Return at most `limit` jobs above the id `after` that are past their own retention, by id."""
        # + 0: no index gives this order, so that the planner looks at the few jobs with a retention of their own
        job_id = self._job.id + 0
        found = sa.select(self._job.id).where(is_past_own(self.models), job_id > after, self.keeps_none_waiting())
        return [*session.scalars(found.order_by(job_id).limit(limit), bind_arguments=self._on)]

    def find_among(
        self,
        session: Session,
        state: str,
        older_than: float,
        condition: sa.ColumnElement[bool],
        *,
        beyond: Place | None,
        looked_at: int,
        limit: int,
    ) -> Found:
        """Look at the next `looked_at` jobs that ended in `state` over `older_than` seconds ago, the oldest first.

        Return at most `limit` of those jobs that meet the condition.
        """
        job = self._job
        order = [job.finished_at, job.id]  # the index gives almost this order: few jobs end at the same moment
        place = sa.func.row_number().over(order_by=order).label("place")
        ended = sa.select(job.id, job.finished_at, condition.label("is_wanted"), place)
        ended = ended.where(*self._is_older(state, older_than)).order_by(*order)
        if beyond is not None:
            ended = ended.where(job.finished_at >= beyond.moment, sa.tuple_(*order) > beyond)
        seen = ended.limit(looked_at).cte("seen")
        found = (
            sa.select(seen.c.id, seen.c.place).where(seen.c.is_wanted).order_by(seen.c.place).limit(limit).cte("found")
        )
        rows = {each: sa.select(sa.func.count()).select_from(each).scalar_subquery() for each in (found, seen)}
        end = {each: sa.select(sa.func.max(each.c.place)).scalar_subquery() for each in (found, seen)}
        last = sa.case((rows[found] == limit, end[found]), (rows[seen] == looked_at, end[seen]))
        wanted = sa.func.array(sa.select(found.c.id).scalar_subquery())
        ends = [
            sa.select(column).where(seen.c.place == last).scalar_subquery()
            for column in (seen.c.finished_at, seen.c.id)
        ]
        row: Any = session.execute(sa.select(wanted, *ends), bind_arguments=self._on).one()
        ids, moment, job_id = row
        return Found(ids, None if moment is None else Place(moment, job_id))

    def find(
        self,
        session: Session,
        conditions: Sequence[sa.ColumnElement[bool]],
        references: Sequence[sa.ColumnElement[bool]],
        *,
        offset: int,
        limit: int,
    ) -> list[int]:
        """Return at most `limit` jobs that meet the conditions and to which no row refers, oldest first."""
        job = self._job
        wanted = sa.select(job.id).where(*conditions, *(~one for one in references)).order_by(job.finished_at)
        return [*session.scalars(wanted.offset(offset).limit(limit), bind_arguments=self._on)]

    def prune(
        self,
        session: Session,
        ids: Sequence[int],
        conditions: Sequence[sa.ColumnElement[bool]],
        references: Sequence[sa.ColumnElement[bool]],
        graphs: Graphs,
        are_alone: bool = False,
    ) -> list[int]:
        """Delete jobs as `remove` does, but skip those that a younger job, or a retry in progress, may need.

        Lock the jobs first. Only a later statement sees the jobs that were enqueued after these before the lock. Jobs
        that are enqueued after their batches meanwhile do not wait for the deleted jobs. `are_alone` says that the
        conditions leave out jobs of graphs.
        """
        held = sa.select(self._job.id).where(self._named, *conditions).with_for_update(skip_locked=True, of=self._job)
        some = session.scalars(held, {"ids": list(ids)}, bind_arguments=self._on).all()
        if not are_alone:
            some = graphs.still_whole(session, ids, some)
        return self._remove(session, some, [*conditions, graphs.may_be_deleted], references, ("cancelled",))

    def remove(
        self,
        session: Session,
        ids: Sequence[int],
        conditions: Sequence[sa.ColumnElement[bool] | sa.TextClause],
        references: Sequence[sa.ColumnElement[bool]],
    ) -> list[int]:
        """Delete the jobs in `ids` that still meet the conditions, with their runs.

        Return the ids of the deleted jobs. Skip jobs that are running, are locked, have been changed since the
        statement began, or are referred to.
        """
        return self._remove(session, ids, conditions, references, ("blocked", "cancelled"))

    @property
    def _named(self) -> sa.ColumnElement[bool]:
        return self._job.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(sa.BigInteger)))  # type: ignore[no-any-return]

    def _remove(
        self,
        session: Session,
        ids: Sequence[int],
        conditions: Sequence[sa.ColumnElement[bool] | sa.TextClause],
        references: Sequence[sa.ColumnElement[bool]],
        waiting: Sequence[str],
    ) -> list[int]:
        """Delete jobs as `remove` does. For jobs in the states `waiting`, the deleted jobs count as cancelled."""
        job, runs = self._job, self._runs
        free = sa.select(ctid.label("ctid")).where(self._named, job.state != "running", *conditions)
        free = free.where(*(~one for one in references)).select_from(job).with_for_update(skip_locked=True, of=job)
        locked = free.cte("locked").prefix_with("MATERIALIZED")
        chosen = sa.any_(array_of(sa.select(locked.c.ctid)))
        going = self._table.alias("going")
        gone = sa.select(going.c.id).where(sa.literal_column("going.ctid") == chosen)
        without = sa.delete(runs).where(runs.c.job_id.in_(gone)).cte("without")
        edges = self._edges
        # for the jobs that wait for it, a deleted job counts as cancelled
        cut = sa.update(edges).where(edges.c.needs_id == sa.any_(array_of(gone))).values(needs_id=sa.null()).cte("cut")
        # delete through the mapped class, so that the session's listeners see the statement
        statement = sa.delete(job).where(ctid == chosen).returning(job.id, job.batch_id).add_cte(without, cut)
        options = {"synchronize_session": False}
        removed = session.execute(statement, {"ids": list(ids)}, bind_arguments=self._on, execution_options=options)
        rows = removed.all()
        if some := {row.batch_id for row in rows if row.batch_id is not None}:
            MarkDeleted(Tables(self.models))(session, some, waiting)
        return [row.id for row in rows]


_REFERENCES = sa.text(
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
      AND reference.confdeltype IN ('a', 'r') AND reference.conrelid IS DISTINCT FROM to_regclass(:edges)
      AND has_schema_privilege(space.oid, 'USAGE')
      AND (SELECT bool_and(has_column_privilege(conrelid, number, 'SELECT')) FROM unnest(conkey) AS number)
    ORDER BY 3, 4, 1
    """
)
