"""The status of limits, for people who ask why a job is waiting. Nothing is locked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import names

_COUNTED = 10_000
"""The maximum number of running jobs to count behind a gate. At most twice as many waiting jobs are counted."""
_GROUPS = 1_000
"""The maximum number of groups of waiting jobs to look at."""


class GateStatus(NamedTuple):
    """The status, at one point in time, of a gate that has a limit."""

    gate: str
    running: int | None
    rate: int | None
    per: float | None
    used: int
    """The number of jobs running behind the gate, or of starts that count."""
    since: datetime | None
    """The time since which the starts behind a rate count."""
    holders: list[int]
    """The ids of some of the running jobs."""
    next_in: float | None
    """Seconds until a used-up rate lets one more job start; None if that is unknown or will never happen."""
    now: datetime
    close: list[float] | None = None
    """If a rate's burst is used up: the burst, and the number of seconds in which at most so many jobs may start."""

    @property
    def most(self) -> int:
        """Return the largest value allowed for `used`."""
        return (self.rate if self.running is None else self.running) or 0

    @property
    def is_full(self) -> bool:
        """True if no job may start now."""
        return self.used >= self.most or self.close is not None

    @property
    def next_at(self) -> datetime | None:
        """Return when a used-up rate lets one more job start, by the server's clock.

        None if the gate is not full, or if the time is unknown or never comes.
        """
        return (
            self.now + timedelta(seconds=max(0.0, self.next_in)) if self.is_full and self.next_in is not None else None
        )


class GateStatuses(Statement):
    """Read the status of the given gates that have a limit, in the given order. `@mail` stands for the queue `mail`."""

    text: ClassVar[str] = read("gate_statuses")
    pieces: Pieces = MappingProxyType({"in_queue": "$jobs h WHERE h.state = 'running' AND h.queue = substr(e.gate, 2)"})

    def __call__(self, connection: SqlConnection, gates: Sequence[str], holders: int = 0) -> list[GateStatus]:
        """Return the status of each gate, with at most `holders` job ids."""
        rows = self._rows(connection, {"gates": names(tuple(gates)), "holders": holders, "counted": _COUNTED})
        return [GateStatus(*row) for row in rows]


class KeysInUse(Statement):
    """Count the running jobs of rows such as `#mail=`. All keys of a row are counted together."""

    text: ClassVar[str] = """
        WITH $busy
        SELECT e.gate, CAST(coalesce(sum(CAST(b.value AS bigint)), 0) AS bigint)
        FROM unnest(CAST(:gates AS text[])) e (gate)
        LEFT JOIN jsonb_each((SELECT running FROM busy)) b ON b.key <> e.gate AND starts_with(b.key, e.gate)
        GROUP BY e.gate"""

    def __call__(self, connection: SqlConnection, rows: Sequence[str]) -> dict[str, int]:
        return dict(self._rows(connection, {"gates": names(tuple(rows))}))


class StartsOfKeys(Statement):
    """Count the starts of each key of a rate such as `%mail=`, for keys of some 10,000 recorded starts.

    In byte order, `>` comes right after `=`.
    """

    text: ClassVar[str] = """
        WITH $moment
        SELECT e.gate, (SELECT max(w.used) FROM $windows(e.gate) w) FROM (
          SELECT DISTINCT s.gate FROM (
            SELECT s.gate FROM $starts s
            WHERE s.gate > CAST(:row AS text) AND s.gate < left(CAST(:row AS text), -1) || '>' LIMIT :counted) s) e
        CROSS JOIN LATERAL $limit_of(e.gate) l WHERE l.rate IS NOT NULL"""

    def __call__(self, connection: SqlConnection, row: str) -> dict[str, int]:
        """Return the number of starts that count by gate, such as `%mail=17`."""
        return dict(self._rows(connection, {"row": row, "counted": _COUNTED}))


class WaitingGroup(NamedTuple):
    """Queued jobs of one queue that have the same gates."""

    gates: list[str]
    waiting: int
    is_least: bool
    """True if `waiting` may be too low."""


class WaitingGroups(Statement):
    """Count the waiting jobs of each group. Many jobs in one group do not hide the other groups."""

    text: ClassVar[str] = read("waiting_groups")
    pieces: Pieces = MappingProxyType({"waiting": "$jobs j WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL"})

    def __call__(self, connection: SqlConnection) -> list[WaitingGroup]:
        """Return at most `_GROUPS` groups. If there are more, `is_least` is set for the last group."""
        rows = self._rows(connection, {"groups": _GROUPS, "counted": 2 * _COUNTED})
        most = max(1, 2 * _COUNTED // max(1, len(rows)))
        return [
            WaitingGroup(gates, min(count, most), is_least=count > most or place == _GROUPS)
            for place, (gates, count) in enumerate(rows, 1)
        ]


class HeldKey(NamedTuple):
    """A failed job that keeps an ordered key, and the number of queued jobs behind it, counted up to 10,000."""

    job_id: int
    gate: str
    waiting: int


class HeldKeys(Statement):
    """Find some of the ordered keys that a failed job keeps while other jobs wait."""

    text: ClassVar[str] = """
        SELECT f.* FROM $limits l CROSS JOIN LATERAL (
          SELECT h.id, h.ordered_by, (SELECT count(*) FROM ($waiting LIMIT :counted) counted)
          FROM $failed_among(l.gate) AND EXISTS ($waiting) LIMIT :most) f
        WHERE l.hold AND l.running IS NOT NULL AND right(l.gate, 1) = '='
        ORDER BY f.id LIMIT :most"""
    pieces: Pieces = MappingProxyType(
        {"waiting": "SELECT FROM $jobs w WHERE w.ordered_by = h.ordered_by AND w.state = 'queued'"}
    )

    def __call__(self, connection: SqlConnection, most: int) -> list[HeldKey]:
        return [HeldKey(*row) for row in self._rows(connection, {"most": most, "counted": _COUNTED})]


class HeadOfKey(Statement):
    """Find the first job of an ordered key: one that has begun, one that failed and keeps the key, or a queued one."""

    text: ClassVar[str] = """
        SELECT h.id FROM (
        (SELECT 1 AS rank, h.* FROM (
          SELECT h.id FROM $begun($key) AND h.state LIKE 'scheduled' AND $is_limited ORDER BY h.position LIMIT 1) h)
        UNION ALL (SELECT 2, h.* FROM (
          SELECT h.id FROM $begun($key) AND h.state LIKE 'failed' AND $is_limited AND $holds($key)
          ORDER BY h.position LIMIT 1) h)
        UNION ALL (SELECT 3, h.* FROM ($head($key)) h)
        ) h ORDER BY rank LIMIT 1"""
    pieces: Pieces = MappingProxyType(
        {"key": "CAST(:order AS text)", "is_limited": "EXISTS (SELECT FROM $limit_of($key) l)"}
    )

    def __call__(self, connection: SqlConnection, order: str) -> int | None:
        """Return the job's id; None if no job waits."""
        return self._run(connection, {"order": order}).scalar()  # type: ignore[no-any-return]
