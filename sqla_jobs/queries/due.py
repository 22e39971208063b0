"""Due jobs: promotion of scheduled jobs, polling, and jobs of tasks that this process does not know."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from sqla_jobs.queries.expressions import (
    array_of,
    in_state,
    is_among,
    locked,
    message_of,
    messages,
    seconds,
)
from sqla_jobs.queries.restrictions import claimable_tasks, is_paused, limited_queues, limited_tasks, paused
from sqla_jobs.queries.sql_text import filled
from sqla_jobs.queries.statement import RenderedStatement, SqlConnection, Statement
from sqla_jobs.queries.values import ALL, MANY, Among, Promotion, names
from sqla_jobs.rules.outcomes import ROW_MISSING, ROWS_COME_WITHIN


class Promote(RenderedStatement):
    """Queue at most `limit` scheduled jobs that are due, or will be due within `ahead` seconds.

    Also count the workers that serve any of `queues`.
    """

    def __call__(
        self,
        connection: SqlConnection,
        *,
        ahead: float = 0.0,
        limit: int = MANY,
        queues: Collection[str] = (),
        among: Among = ALL,
    ) -> Promotion:
        return _promotion(self._rows(connection, _parameters(queues, among, ahead, limit)), limit)

    def sql(self) -> Any:
        tables = self.tables
        jobs = tables.jobs
        now = sa.func.statement_timestamp()
        is_due = jobs.c.run_at <= now + seconds(sa.bindparam("ahead"))
        waits = (in_state(jobs, "scheduled"), is_due, is_among(jobs))
        limit: Any = sa.bindparam("limit")
        rows = sa.select(jobs.c.ctid, jobs.c.run_at).where(*waits, jobs.c.ordered_by.is_(None))
        plain = locked(rows.order_by(jobs.c.run_at).limit(limit), "plain", of=jobs)
        # jobs with an ordered key are promoted up to the same due time, so that neither kind waits for all of the other
        reached = sa.select(sa.func.max(plain.c.run_at)).having(sa.func.count() >= limit).scalar_subquery()
        is_reached = jobs.c.run_at < sa.func.coalesce(reached, sa.literal_column("'infinity'::timestamptz"))
        in_order = (*waits, jobs.c.ordered_by.is_not(None), is_reached)
        # the lock is taken only if such a job is found
        is_mine = sa.literal_column(filled("$takes_turn", tables), sa.Boolean).label("is_mine")
        first = sa.select(is_mine).select_from(jobs).where(*in_order).order_by(jobs.c.run_at).limit(1)
        turn = first.cte("turn").prefix_with("MATERIALIZED")
        rows = sa.select(jobs.c.ctid).where(*in_order, sa.select(turn.c.is_mine).scalar_subquery())
        ordered = locked(rows.order_by(jobs.c.run_at, jobs.c.id).limit(limit), "ordered", of=jobs)
        due = sa.union_all(sa.select(plain.c.ctid), sa.select(ordered.c.ctid)).cte("due")
        # number the jobs in this order: the planner may update the rows in another order
        position = tables.positions.next_value().label("position")
        numbered = sa.select(due.c.ctid, position).cte("numbered").prefix_with("MATERIALIZED")
        promoted = (
            sa.update(jobs)
            .where(jobs.c.ctid == numbered.c.ctid, jobs.c.ctid == sa.any_(array_of(sa.select(due.c.ctid))))
            .values(state="queued", position=numbered.c.position)
            .returning(jobs.c.id, jobs.c.queue, jobs.c.gates)
            .cte("promoted")
        )
        # look only at jobs that are due later: a locked row that is due would make the caller look again endlessly
        ahead = sa.and_(jobs.c.run_at > now, jobs.c.run_at < sa.literal_column("'infinity'"))
        next_due = sa.select(sa.func.min(jobs.c.run_at)).where(in_state(jobs, "scheduled"), ahead).scalar_subquery()
        next_at = sa.func.least(next_due, *(_next_end(paused, now) for paused in (tables.queues, tables.paused_tasks)))
        due_in: Any = sa.func.coalesce(
            sa.cast(sa.func.extract("epoch", next_at - now), sa.Double),
            sa.literal_column("'Infinity'::float8", sa.Double),
        )
        # the process that has the lock may have begun before some of these jobs were due
        due_in = sa.func.least(
            due_in, sa.select(sa.case((turn.c.is_mine, sa.null()), else_=_NEXT_TURN)).scalar_subquery()
        )
        processes = tables.processes
        serves = processes.c.queues.has_any(sa.cast(sa.bindparam("queues", type_=sa.Text), sa.ARRAY(sa.Text)))
        workers = (
            sa.select(sa.func.count())
            .where(processes.c.kind == sa.literal_column("'worker'"), serves)
            .scalar_subquery()
        )
        count = sa.select(sa.func.count()).select_from(promoted).scalar_subquery()
        # jobs enqueued by other code may have gates without a row of limits
        behind = sa.exists().where(jobs.c.state.like(sa.literal_column("'queued'")), jobs.c.gates.is_not(None))
        are_blocked = sa.exists().where(in_state(jobs, "blocked"), jobs.c.waits_for.is_not(None))
        told = messages(tables, sa.select(message_of(promoted)).distinct(), others=1)
        has_limits = sa.or_(sa.exists(sa.select(tables.limits.c.gate)), behind)
        return sa.select(count, due_in, workers, has_limits, are_blocked).where(told)


def _parameters(queues: Collection[str], among: Among, ahead: float = 0.0, limit: int = MANY) -> dict[str, Any]:
    return {"ahead": ahead, "limit": limit, "queues": names(tuple(queues)), **among.parameters()}


def _promotion(rows: Sequence[Any], limit: int) -> Promotion:
    ((count, due_in, *others),) = rows
    return Promotion(count, 0.0 if count >= limit else due_in, *others)


def _next_end(paused: Any, now: Any) -> Any:
    """Return the time at which the next pause ends by itself."""
    ahead = sa.and_(paused.c.paused_until > now, paused.c.paused_until < sa.literal_column("'infinity'"))
    return sa.select(sa.func.min(paused.c.paused_until)).where(ahead).scalar_subquery()


_NEXT_TURN = sa.literal_column("0.05", sa.Double)
"""Seconds after which to look again for jobs that another process is promoting in order."""
_QUEUES, _TASKS = (sa.any_(sa.bindparam(name, type_=sa.ARRAY(sa.Text))) for name in ("queues", "tasks"))


class IsDue(Statement):
    """Return whether any job without limits can be claimed now, or any job promoted. Ignore locked rows.

    A job that looks for a missing row again counts as due: if the row has been deleted, the job ends in some seconds.
    """

    def __call__(
        self, connection: SqlConnection, queues: Sequence[str], tasks: Sequence[str], among: Among = ALL
    ) -> bool:
        values = {"queues": list(queues), "tasks": list(tasks), **among.parameters()}
        return bool(self._run(connection, values).scalar())

    def sql(self) -> Any:
        jobs, held, held_tasks = self.tables.jobs, self.tables.queues, self.tables.paused_tasks
        here = sa.and_(
            jobs.c.queue == _QUEUES,
            jobs.c.task == _TASKS,
            ~sa.exists().where(held.c.name == jobs.c.queue, is_paused(held.c)),
            ~sa.exists().where(held_tasks.c.name == jobs.c.task, is_paused(held_tasks.c)),
            is_among(jobs),
        )
        found = sa.select(sa.literal(1)).where(here).limit(1).with_for_update(skip_locked=True, key_share=True, of=jobs)
        plain = (
            jobs.c.gates.is_(None),
            jobs.c.task != sa.all_(array_of(limited_tasks(self.tables))),
            jobs.c.queue != sa.all_(array_of(limited_queues(self.tables))),
        )
        queued = found.where(in_state(jobs, "queued"), *plain).cte("queued").prefix_with("MATERIALIZED")
        due: Any = found.where(in_state(jobs, "scheduled"), jobs.c.run_at <= sa.func.statement_timestamp())
        due = due.cte("due").prefix_with("MATERIALIZED")
        now, run = sa.func.statement_timestamp(), self.tables.runs
        in_time = sa.and_(jobs.c.run_at > now, jobs.c.run_at <= now + seconds(sa.literal_column(str(ROWS_COME_WITHIN))))
        of_last_start = sa.and_(run.c.job_id == jobs.c.id, run.c.finished_at >= jobs.c.started_at)
        looks_again = sa.exists().where(of_last_start, run.c.outcome == "snoozed", run.c.error_type == ROW_MISSING)
        looks = sa.exists().where(in_state(jobs, "scheduled"), here, in_time, looks_again.correlate(jobs))
        return sa.select(sa.or_(*(sa.exists().select_from(found) for found in (queued, due)), looks))


class Poll(RenderedStatement):
    """Promote as `Promote` does, and check whether other jobs are queued. Processes that do not claim jobs use it."""

    def __call__(
        self, connection: SqlConnection, queues: Sequence[str], tasks: Sequence[str], among: Among = ALL
    ) -> Promotion:
        values = _parameters(queues, among) | {"tasks": names(tuple(tasks))}
        return _promotion(self._rows(connection, values), MANY)

    def sql(self) -> Any:
        jobs, held = self.tables.jobs, array_of(paused(self.tables.queues))
        queues, tasks = sa.cast(sa.bindparam("queues", type_=sa.Text), sa.ARRAY(sa.Text)), claimable_tasks(self.tables)
        here = (
            jobs.c.queue == sa.any_(queues),
            jobs.c.queue != sa.all_(held),
            jobs.c.task == sa.any_(tasks),
            is_among(jobs),
        )
        return Promote(self.tables).sql().add_columns(sa.exists().where(in_state(jobs, "queued"), *here))


class UnknownTo(Statement):
    """Count, by task, the first 10,000 jobs waiting in `queues` whose task is not in `tasks`."""

    def __call__(self, connection: SqlConnection, queues: Sequence[str], tasks: Sequence[str]) -> dict[str, int]:
        return dict(self._rows(connection, {"queues": list(queues), "tasks": list(tasks)}))

    def sql(self) -> Any:
        jobs = self.tables.jobs
        here = (in_state(jobs, "queued"), jobs.c.queue == _QUEUES, ~(jobs.c.task == _TASKS))
        waiting = sa.select(jobs.c.task).where(*here).limit(10_000).subquery()
        return sa.select(waiting.c.task, sa.func.count()).group_by(waiting.c.task)


def waiting_queues(job: Any) -> sa.Select[Any]:
    """Return a query for the names of queues with queued jobs. The query walks an index. `job` is the mapped class."""
    name = sa.select(sa.func.min(job.queue).label("name")).where(job.state == "queued").cte("names", recursive=True)
    following = (
        sa.select(sa.func.min(job.queue)).where(job.state == "queued", job.queue > name.c.name).correlate(name)
    ).scalar_subquery()
    name = name.union_all(sa.select(following).where(name.c.name.is_not(None)))
    return sa.select(name.c.name).where(name.c.name.is_not(None))
