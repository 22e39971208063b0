"""The backfill of gates, for jobs enqueued by plain SQL, or before a limit was declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import sqlalchemy as sa

from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import MANY, names, numbers, texts


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


def _lacking(is_running: str) -> str:
    # ordered gates begin with !, and " comes next in byte order
    return f"""SELECT j.id, j.task, CAST(j.args AS text), coalesce(j.gates, '{{}}'), {is_running}
        FROM $jobs j
        JOIN unnest(CAST(:tasks AS text[]), CAST(:numbers AS int[])) known (task, number) ON known.task = j.task
        WHERE (coalesce(cardinality(j.gates), 0) < known.number OR j.ordered_by IS NULL AND '"' > ANY (j.gates))"""


class FewerGates(Statement):
    """Find the running jobs that lack gates, and some of the waiting jobs that lack gates.

    Plain SQL can also give a job an ordered gate but no position in the order. No claim would find such a job.
    """

    text: ClassVar[str] = f"""
        $lacking(true) AND j.state = 'running'
        UNION ALL
        ($lacking(false) AND j.state = 'queued' AND j.queue = ANY (CAST(:queues AS text[])) LIMIT {MANY})"""
    pieces: Pieces = MappingProxyType({"lacking": _lacking})

    def __call__(
        self, connection: sa.Connection, expected: Mapping[str, int], queues: Sequence[str]
    ) -> list[LacksGates]:
        """Return the jobs that lack gates.

        `expected` maps each task to its number of gates. At most `MANY` waiting jobs are found, only in `queues`.
        """
        values = {
            "tasks": names(tuple(expected)),
            "numbers": numbers(expected.values()),
            "queues": names(tuple(queues)),
        }
        return [LacksGates(*row) for row in self._run(connection, values)]


class GiveGates(Statement):
    """Set the gates of waiting or running jobs. Locked rows, and jobs whose arguments have changed, are skipped."""

    text: ClassVar[str] = """
        WITH given AS MATERIALIZED (
            SELECT j.id, g.gates, g.ordered_by
            FROM $jobs j
            JOIN unnest(
              CAST(:ids AS bigint[]), CAST(:made_from AS text[]), CAST(:gates AS text[]), CAST(:orders AS text[]))
              g (id, args, gates, ordered_by) ON g.id = j.id
            WHERE j.state IN ('queued', 'running') AND CAST(j.args AS text) = g.args
            FOR NO KEY UPDATE OF j SKIP LOCKED
        )
        UPDATE $jobs j SET gates = CAST(g.gates AS text[]), ordered_by = g.ordered_by FROM given g WHERE j.id = g.id"""

    def __call__(self, connection: sa.Connection, gated: Sequence[Gated]) -> int:
        """Return the number of changed jobs."""
        values = {
            "ids": numbers([one.job_id for one in gated]),
            "made_from": texts([one.args for one in gated]),
            "gates": texts([names(tuple(one.gates)) for one in gated]),
            "orders": texts([one.ordered_by for one in gated]),
        }
        return int(self._run(connection, values).rowcount)


class OperatorLimits(Statement):
    """Find the limits on whole tasks and queues that only operators have set: each gate with its tasks' names."""

    text: ClassVar[str] = """
        SELECT l.gate, l.tasks FROM $limits l
        WHERE l.declared IS NULL AND $is_in_effect AND strpos(l.gate, '=') = 0"""

    def __call__(self, connection: sa.Connection) -> list[tuple[str, list[str]]]:
        return [(gate, tasks) for gate, tasks in self._run(connection, {})]
