"""The backfill of gates, for jobs enqueued by plain SQL, by a schedule, or before a limit was declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Integer,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import TEXT

from sqla_jobs.calls.values import MANY, names, numbers, texts
from sqla_jobs.queries.expressions import in_state, locked, unnest_text
from sqla_jobs.queries.restrictions import is_of_operator
from sqla_jobs.queries.statement import Statement


class LacksGates(NamedTuple):
    """A job that has fewer gates than its task declares, or an ordered key but no position in that order."""

    job_id: int
    task: str
    args: str
    gates: list[str]
    is_running: bool


class Gated(NamedTuple):
    """The gates to store for a job."""

    job_id: int
    args: str
    """The arguments from which the gates were made."""
    gates: Sequence[str]
    ordered_by: str | None


class FewerGates(Statement):
    """Find the running jobs that lack gates, and some of the waiting jobs that lack gates.

    Plain SQL can also give a job an ordered gate but no position in the order. No claim would find such a job.
    """

    def __call__(self, connection: Connection, expected: Mapping[str, int], queues: Sequence[str]) -> list[LacksGates]:
        """Return the jobs that lack gates.

        `expected` maps each task to its number of gates. Waiting jobs are found only in `queues`.
        """
        values = {
            "tasks": names(tuple(expected)),
            "numbers": numbers(expected.values()),
            "queues": names(tuple(queues)),
            "limit": MANY,
        }
        return [LacksGates(*row) for row in self._run(connection, values)]

    def sql(self) -> Any:
        jobs = self.tables.jobs
        here = jobs.c.queue == any_(cast(bindparam("queues", type_=Text), ARRAY(Text)))
        waiting = self._lacking(false(), in_state(jobs, "queued"), here).limit(bindparam("limit"))
        return union_all(self._lacking(true(), in_state(jobs, "running")), select(waiting.subquery()))

    def _lacking(self, is_running: Any, *where: Any) -> Any:
        jobs = self.tables.jobs
        known = unnest_text("known", task=("tasks", Text), number=("numbers", Integer))
        has = func.coalesce(func.cardinality(jobs.c.gates), 0)
        gates = func.coalesce(jobs.c.gates, literal_column("'{}'::text[]", ARRAY(Text)))
        first_after_ordered = literal_column(
            """'"'""", Text
        )  # ordered gates begin with !, and " comes next in byte order
        is_outside = and_(jobs.c.ordered_by.is_(None), first_after_ordered > any_(jobs.c.gates))
        return (
            select(jobs.c.id, jobs.c.task, cast(jobs.c.args, Text), gates, is_running)
            .select_from(jobs.join(known, jobs.c.task == known.c.task))
            .where(or_(has < known.c.number, is_outside), *where)
        )


class GiveGates(Statement):
    """Set the gates of waiting or running jobs. Locked rows, and jobs whose arguments have changed, are skipped."""

    def __call__(self, connection: Connection, gated: Sequence[Gated]) -> int:
        """Return the number of changed jobs."""
        values = {
            "ids": numbers([one.job_id for one in gated]),
            "made_from": texts([one.args for one in gated]),
            "gates": texts([names(tuple(one.gates)) for one in gated]),
            "orders": texts([one.ordered_by for one in gated]),
        }
        return int(self._run(connection, values).rowcount)

    def sql(self) -> Any:
        jobs = self.tables.jobs
        given = unnest_text(
            "given",
            id=("ids", BigInteger),
            args=("made_from", Text),
            gates=("gates", Text),
            ordered_by=("orders", Text),
        )
        rows = (
            select(jobs.c.id, given.c.gates, given.c.ordered_by)
            .select_from(jobs.join(given, jobs.c.id == given.c.id))
            .where(
                jobs.c.state.in_([literal_column("'queued'"), literal_column("'running'")]),
                cast(jobs.c.args, Text) == given.c.args,
            )
        )
        mine = locked(rows, "mine", of=jobs)
        return (
            update(jobs)
            .where(jobs.c.id == mine.c.id)
            .values(gates=cast(mine.c.gates, ARRAY(TEXT)), ordered_by=mine.c.ordered_by)
        )


class OperatorLimits(Statement):
    """Find the limits on whole tasks and queues that only operators have set: each gate with its tasks' names."""

    def __call__(self, connection: Connection) -> list[tuple[str, list[str]]]:
        return [(gate, tasks) for gate, tasks in self._run(connection, {})]

    def sql(self) -> Any:
        limits = self.tables.limits
        return select(limits.c.gate, limits.c.tasks).where(is_of_operator(limits.c))
