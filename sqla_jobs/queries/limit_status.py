"""The status of limits, for people who ask why a job is waiting. Nothing is locked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqla_jobs.queries.free_places import (
    BUSY,
    MOMENT,
    begun,
    failed_among,
    filled_in,
    head,
    held,
    holders,
    holds,
    limit_of,
    next_start,
    of_row,
    windows,
)
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import names

_COUNTED = 10_000
"""The maximum number of running jobs to count behind a gate. At most twice as many waiting jobs are counted."""
_GROUPS = 1_000
"""The maximum number of groups of waiting jobs to look at."""
_ALL = 1_000_000_000


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

    def __call__(self, connection: SqlConnection, gates: Sequence[str], holders: int = 0) -> list[GateStatus]:
        """Return the status of each gate, with at most `holders` job ids."""
        rows = self._rows(connection, {"gates": names(tuple(gates)), "holders": holders, "counted": _COUNTED})
        return [GateStatus(*row) for row in rows]

    def sql(self) -> Any:
        return filled_in(_STATES, self.tables)


class KeysInUse(Statement):
    """Count the running jobs of rows such as `#mail=`. All keys of a row are counted together."""

    def __call__(self, connection: SqlConnection, rows: Sequence[str]) -> dict[str, int]:
        return dict(self._rows(connection, {"gates": names(tuple(rows))}))

    def sql(self) -> Any:
        return filled_in(_IN_USE, self.tables)


class StartsOfKeys(Statement):
    """Count the starts of each key of a rate such as `%mail=`, for keys of some 10,000 recorded starts."""

    def __call__(self, connection: SqlConnection, row: str) -> dict[str, int]:
        """Return the number of starts that count by gate, such as `%mail=17`."""
        return dict(self._rows(connection, {"row": row, "counted": _COUNTED}))

    def sql(self) -> Any:
        return filled_in(_STARTS_OF_KEYS, self.tables)


class WaitingGroup(NamedTuple):
    """Queued jobs of one queue that have the same gates."""

    gates: list[str]
    waiting: int
    is_least: bool
    """True if `waiting` may be too low."""


class WaitingGroups(Statement):
    """Count the waiting jobs of each group. Many jobs in one group do not hide the other groups."""

    def __call__(self, connection: SqlConnection, *, exact: bool = False) -> list[WaitingGroup]:
        """Return at most `_GROUPS` groups.

        If there are more, `is_least` is set for the last group. With `exact`, return all groups, with exact counts.
        """
        groups, counted = (_ALL, _ALL**2) if exact else (_GROUPS, 2 * _COUNTED)
        rows = self._rows(connection, {"groups": groups, "counted": counted})
        most = max(1, counted // max(1, len(rows)))
        return [
            WaitingGroup(gates, min(count, most), is_least=count > most or place == groups)
            for place, (gates, count) in enumerate(rows, 1)
        ]

    def sql(self) -> Any:
        return filled_in(_WAITING, self.tables)


class HeldKey(NamedTuple):
    """A failed job that keeps an ordered key, and the number of queued jobs behind it, counted up to 10,000."""

    job_id: int
    gate: str
    waiting: int


class HeldKeys(Statement):
    """Find some of the ordered keys that a failed job keeps while other jobs wait."""

    def __call__(self, connection: SqlConnection, most: int) -> list[HeldKey]:
        return [HeldKey(*row) for row in self._rows(connection, {"most": most, "counted": _COUNTED})]

    def sql(self) -> Any:
        return filled_in(_HELD, self.tables)


class HeadOfKey(Statement):
    """Find the first job of an ordered key: one that has begun, one that failed and keeps the key, or a queued one."""

    def __call__(self, connection: SqlConnection, order: str) -> int | None:
        """Return the job's id; None if no job waits."""
        return self._run(connection, {"order": order}).scalar()  # type: ignore[no-any-return]

    def sql(self) -> Any:
        return filled_in(_HEAD, self.tables)


_OF_QUEUE = "SELECT{columns} FROM {{jobs}} h WHERE h.state = 'running' AND h.queue = substr(e.gate, 2)"
_IN_QUEUE = f"(SELECT count(*) FROM ({_OF_QUEUE.format(columns='')} LIMIT :counted) holders)"
_FIRST_IN_QUEUE = f"ARRAY({_OF_QUEUE.format(columns=' h.id')} ORDER BY h.current_run_id LIMIT :holders)"
_STATES = f"""
WITH {MOMENT}, {BUSY}
SELECT e.gate, l.running, l.rate, l.per,
  CASE WHEN l.rate IS NOT NULL THEN w.used WHEN left(e.gate, 1) = '@' THEN {_IN_QUEUE}
    ELSE least({held("e.gate")}, :counted) END, w.since,
  CASE WHEN left(e.gate, 1) = '@' THEN {_FIRST_IN_QUEUE} ELSE {holders("e.gate", ":holders")} END,
  {next_start("e.gate")}, (SELECT now FROM moment),
  (SELECT ARRAY[w.most, CAST(extract(epoch FROM w.now - w.since) AS float8)] FROM {windows("e.gate")} w
   WHERE w.most < l.rate AND w.most <= w.used)
FROM unnest(CAST(:gates AS text[])) WITH ORDINALITY e (gate, place)
CROSS JOIN LATERAL {limit_of("e.gate")} l
CROSS JOIN LATERAL (SELECT max(w.used) AS used, min(w.since) AS since FROM {windows("e.gate")} w) w
ORDER BY e.place
"""

_STARTS_OF_KEYS = f"""
WITH {MOMENT}
SELECT e.gate, (SELECT max(w.used) FROM {windows("e.gate")} w) FROM (
  SELECT DISTINCT s.gate FROM (
    SELECT s.gate FROM {{starts}} s WHERE {of_row("s.gate", "CAST(:row AS text)")} LIMIT :counted) s) e
CROSS JOIN LATERAL {limit_of("e.gate")} l WHERE l.rate IS NOT NULL
"""

_IN_USE = f"""
WITH {BUSY}
SELECT e.gate, CAST(coalesce(sum(CAST(b.value AS bigint)), 0) AS bigint)
FROM unnest(CAST(:gates AS text[])) e (gate)
LEFT JOIN jsonb_each((SELECT running FROM busy)) b ON b.key <> e.gate AND starts_with(b.key, e.gate)
GROUP BY e.gate
"""

_BEHIND = "{jobs} j WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL"
_FIRST_GROUP = "ORDER BY j.queue, j.gates LIMIT 1"
_WAITING = f"""
WITH RECURSIVE walk AS (
    (SELECT 1 AS step, j.queue, j.gates FROM {_BEHIND} {_FIRST_GROUP})
  UNION ALL
    SELECT w.step + 1, n.queue, n.gates FROM walk w
    CROSS JOIN LATERAL (
      SELECT j.queue, j.gates FROM {_BEHIND} AND (j.queue, j.gates) > (w.queue, w.gates) {_FIRST_GROUP}) n
    WHERE w.step < :groups
), most AS MATERIALIZED (
    SELECT greatest(1, :counted / greatest(1, count(*))) + 1 AS most FROM walk
)
SELECT w.gates, (
  SELECT count(*) FROM (
    SELECT FROM {_BEHIND} AND j.queue = w.queue AND j.gates = w.gates LIMIT (SELECT most FROM most)) counted)
FROM walk w ORDER BY w.step
"""

_NEXT = "SELECT FROM {jobs} w WHERE w.ordered_by = h.ordered_by AND w.state = 'queued'"
_HELD = f"""
SELECT f.* FROM {{limits}} l CROSS JOIN LATERAL (
  SELECT h.id, h.ordered_by, (SELECT count(*) FROM ({_NEXT} LIMIT :counted) counted) FROM {failed_among("l.gate")}
    AND EXISTS ({_NEXT}) LIMIT :most) f
WHERE l.hold AND l.running IS NOT NULL AND right(l.gate, 1) = '='
ORDER BY f.id LIMIT :most
"""

_ORDER = "CAST(:order AS text)"
_IS_LIMITED = f"EXISTS (SELECT FROM {limit_of(_ORDER)} l)"
_BEGUN = f"SELECT h.id FROM {begun(_ORDER)}"
_FIRST = "ORDER BY h.position LIMIT 1"
_HEAD = f"""
SELECT h.id FROM (
(SELECT 1 AS rank, h.* FROM ({_BEGUN} AND h.state LIKE 'scheduled' AND {_IS_LIMITED} {_FIRST}) h)
UNION ALL (SELECT 2, h.* FROM ({_BEGUN} AND h.state LIKE 'failed' AND {_IS_LIMITED} AND {holds(_ORDER)} {_FIRST}) h)
UNION ALL (SELECT 3, h.* FROM ({head(_ORDER)}) h)
) h ORDER BY rank LIMIT 1
"""
