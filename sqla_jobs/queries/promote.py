"""The promotion of scheduled jobs that are due."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    Double,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)

from sqla_jobs.calls import lookout
from sqla_jobs.queries.expressions import array_of, in_state, is_among, locked, message_of, messages, seconds
from sqla_jobs.queries.statement import RenderedStatement, SqlConnection


class Promote(RenderedStatement, lookout.Promote[SqlConnection]):
    def sql(self) -> Any:
        tables = self.tables
        jobs = tables.jobs
        now = func.statement_timestamp()
        is_due = jobs.c.run_at <= now + seconds(bindparam("ahead"))
        rows = select(jobs.c.ctid).where(in_state(jobs, "scheduled"), is_due, is_among(jobs))
        due = locked(rows.order_by(jobs.c.run_at).limit(bindparam("limit")), "due", of=jobs)
        # in this order, whatever the one in which the planner has the rows changed
        position = tables.positions.next_value().label("position")
        numbered = select(due.c.ctid, position).cte("numbered").prefix_with("MATERIALIZED")
        promoted = (
            update(jobs)
            .where(jobs.c.ctid == numbered.c.ctid, jobs.c.ctid == any_(array_of(select(due.c.ctid))))
            .values(state="queued", position=numbered.c.position)
            .returning(jobs.c.id, jobs.c.queue, jobs.c.gates)
            .cte("promoted")
        )
        # only what lies ahead: a due row that somebody holds locked would make the caller look again at once, for ever
        ahead = and_(jobs.c.run_at > now, jobs.c.run_at < literal_column("'infinity'"))
        next_due = select(func.min(jobs.c.run_at)).where(in_state(jobs, "scheduled"), ahead).scalar_subquery()
        next_at = func.least(next_due, *(_next_end(paused, now) for paused in (tables.queues, tables.paused_tasks)))
        due_in = func.coalesce(
            cast(func.extract("epoch", next_at - now), Double), literal_column("'Infinity'::float8", Double)
        )
        processes = tables.processes
        serves = processes.c.queues.has_any(cast(bindparam("queues", type_=Text), ARRAY(Text)))
        workers = select(func.count()).where(processes.c.kind == literal_column("'worker'"), serves).scalar_subquery()
        count = select(func.count()).select_from(promoted).scalar_subquery()
        # jobs that other code enqueued may wait behind gates without a row
        behind = exists().where(jobs.c.state.like(literal_column("'queued'")), jobs.c.gates.is_not(None))
        told = messages(tables, select(message_of(promoted)).distinct(), others=1)
        return select(count, due_in, workers, or_(exists(select(tables.limits.c.gate)), behind)).where(told)


def _next_end(paused: Any, now: Any) -> Any:
    """When the next pause ends by itself."""
    ahead = and_(paused.c.paused_until > now, paused.c.paused_until < literal_column("'infinity'"))
    return select(func.min(paused.c.paused_until)).where(ahead).scalar_subquery()
