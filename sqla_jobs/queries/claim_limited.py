"""The claim of jobs behind gates, exactly within their limits. The claim needs the limits lock."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from sqlalchemy.orm import Session

from sqla_jobs.models.types import MOST_ATTEMPTS
from sqla_jobs.queries.claim import ClaimStatement
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import SqlConnection
from sqla_jobs.queries.values import ALL, Among, Claimed, names, numbers
from sqla_jobs.rules.limits import MOST_RUNNING

_OF_LOOK = 3
"""The number of columns at the end of each row that describe the whole look."""
_STEPS = 200
"""The maximum number of groups that one look walks through."""


Gates = tuple[str, ...]
"""The gates of a job. Jobs with the same gates are a group."""


NOTHING_ENDED: Mapping[Gates, int] = MappingProxyType({})


class Look(NamedTuple):
    """The result of a look at the groups of a queue."""

    claimed: list[Claimed]
    cursor: str
    """The cursor for the next look; `{}` after the last group."""
    next_in: float | None
    """Seconds until a used-up rate lets one more job start."""
    has_full: bool
    """True if a group was full, so that the end of one of its jobs is worth a hint."""


class ClaimLimited(ClaimStatement):
    """Claim at most `room` jobs that are behind gates in one queue, from each group in turn.

    A group consists of the jobs with the same gates. The walk goes from one group to the next in the index, and skips
    all groups that begin with the same gates up to a full one. Only the head of an ordered key may start: a job that
    has begun, or else the job with the lowest position, in any queue and group. Cursors and hints are arrays of gates
    in PostgreSQL's format.
    """

    text: ClassVar[str] = read("claim_limited")
    pieces: Pieces = MappingProxyType(
        {
            "is_known": "j.task = ANY (CAST((SELECT tasks FROM begin) AS text[])) AND $is_among",
            "most_running": str(MOST_RUNNING),
            "most_attempts_before": str(MOST_ATTEMPTS - 1),
        }
    )

    def __call__(
        self, session: Session, process_id: uuid.UUID, queue: str, tasks: Sequence[str], *, cursor: str
    ) -> Look:
        """Look for one job, and claim it."""
        rows = self._rows(session, self.values(process_id, queue, 1, tasks, cursor=cursor))
        return self.look(session, rows, process_id)

    @staticmethod
    def values(
        process_id: uuid.UUID,
        queue: str,
        room: int,
        tasks: Sequence[str],
        *,
        cursor: str = "{}",
        hints: Mapping[Gates, int] = NOTHING_ENDED,
        among: Among = ALL,
    ) -> dict[str, Any]:
        """Return the parameters of the statement.

        `hints` maps groups to the number of their jobs that have ended in this process. The claim looks at
        these groups first, if the ended jobs freed a full gate. Then it looks at the groups after `cursor`.
        """
        return {
            "process_id": process_id,
            "queue": queue,
            "room": room,
            "tasks": names(tuple(tasks)),
            "cursor": cursor,
            "hints": names(tuple(names(gates) for gates in hints)),
            "ended": numbers(hints.values()),
            "steps": _STEPS,
            **among.parameters(),
        }

    def look(self, connection: SqlConnection, rows: Sequence[Any], process_id: uuid.UUID) -> Look:
        """Return the result of a look, made from the statement's rows."""
        found = [row[:-_OF_LOOK] for row in rows if row[0] is not None]
        gates = {job_id: tuple(its) for job_id, *_, its in found}
        return Look(self.claimed(connection, process_id, [row[:-1] for row in found], gates), *rows[0][-_OF_LOOK:])
