"""The limits lock, the claims under it, and statements about the places and starts that they take."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from sqla_jobs.database.driver import committed_together, driver, execute
from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries.claim import ClaimFromLimitedQueue
from sqla_jobs.queries.expressions import Tables, lock_key
from sqla_jobs.queries.gates import BUSY, MOMENT, filled_in, free, last_start, queue_free, shifted
from sqla_jobs.queries.limited import NOTHING_ENDED, ClaimLimited, Gates, Look
from sqla_jobs.queries.statement import RenderedStatement
from sqla_jobs.queries.values import ALL, Among, Claimed, names, numbers
from sqla_jobs.rules.checks import DAY

_SETTING = "current_setting('synchronous_commit')"
_AT_LEAST_ON = f"CASE {_SETTING} WHEN 'off' THEN 'on' ELSE {_SETTING} END"
"""The synchronous_commit setting with which a commit waits for at least the server's own disk."""


class Lock(RenderedStatement):
    """Take the limits lock: only its holder looks for free places and takes them.

    The holder's commit waits for the disk.
    """

    def sql(self) -> Any:
        return text(f"SELECT pg_advisory_xact_lock({lock_key(self.tables, 'limits')}){self._also}")

    _also = f", set_config('synchronous_commit', {_AT_LEAST_ON}, true)"


class LockUnflushed(Lock):
    """Take the limits lock.

    The holder's commit does not wait for the disk, so the next holder gets the lock sooner: see `Flush`.
    """

    _also = ", set_config('synchronous_commit', 'off', true)"


class Flush(RenderedStatement):
    """Flush all earlier commits to disk, so that no job starts under a claim that a crash can undo."""

    def sql(self) -> Any:
        setting = f"set_config('synchronous_commit', {_AT_LEAST_ON}, true)"
        return text(f"SELECT {setting}, pg_logical_emit_message(true, 'sqla_jobs', '')")


class ClaimLocked:
    """The claims of limited jobs.

    Each claim counts jobs in a snapshot taken while it holds the lock. So concurrent claims together never exceed a
    limit.
    """

    def __init__(self, tables: Tables) -> None:
        self._lock = LockUnflushed(tables)
        self._lock_to_end = Lock(tables)
        self._flush = Flush(tables)
        self._behind_gates = ClaimLimited(tables)
        self._plain = ClaimFromLimitedQueue(tables)

    def __call__(
        self,
        connection: Connection,
        process_id: uuid.UUID,
        queue: str,
        room: int,
        tasks: Sequence[str],
        *,
        cursor: str = "{}",
        hints: Mapping[Gates, int] = NOTHING_ENDED,
        among: Among = ALL,
    ) -> Look:
        """Claim jobs behind gates, and commit, in two round trips.

        A process that stops between them holds no lock.
        """
        claim = self._behind_gates
        values = claim.values(process_id, queue, room, tasks, cursor=cursor, hints=hints, among=among)
        look = claim.look(connection, self._rows(connection, claim, values), process_id)
        self._flush_after(connection, look.claimed)
        return look

    def from_limited_queue(
        self,
        connection: Connection,
        process_id: uuid.UUID,
        queue: str,
        room: int,
        tasks: Sequence[str],
        among: Among = ALL,
    ) -> list[Claimed]:
        """Claim jobs without gates, within the limit of their queue."""
        values = self._plain.values(process_id, {queue: room}, tasks, among=among)
        claimed = self._plain.claimed(connection, process_id, self._rows(connection, self._plain, values))
        self._flush_after(connection, claimed)
        return claimed

    def _rows(self, connection: Connection, claim: RenderedStatement, values: dict[str, Any]) -> list[Any]:
        with committed_together(driver(connection)) as send:
            send(*self._lock.sent({}))
            answer = send(*claim.sent(values))
        return answer.fetchall()

    def _flush_after(self, connection: Connection, claimed: Sequence[Claimed]) -> None:
        if claimed:
            execute(driver(connection), *self._flush.sent({}))

    def inside(
        self, session: Session, process_id: uuid.UUID, queue: str, tasks: Sequence[str], *, cursor: str
    ) -> tuple[list[Claimed], str]:
        """Claim one job in the caller's transaction, which keeps the lock until the transaction ends.

        Return the job, and the cursor for the next look: `{}` after the last group.
        """
        self._lock_to_end.run(session)
        if plain := self._plain(session, process_id, {queue: 1}, tasks):
            return plain, cursor
        look = self._behind_gates(session, process_id, queue, tasks, cursor=cursor)
        return look.claimed, look.cursor


class TellOthers(RenderedStatement):
    """If a gate or a queue may have been full, has room now, and jobs are waiting, notify all workers."""

    def __call__(self, connection: Connection, channel: str, freed: Mapping[str, int]) -> list[str]:
        """Notify workers if necessary. Return the gates whose freed places no longer count.

        `freed` maps a gate, or a queue such as `@mail`, to the number of places that jobs of this process have freed,
        and that no others have taken here. Each worker is assumed to have freed as many. A gate that has more room
        than all of them have freed together is not returned: either it was not full, or another worker has freed more
        places than this one. In that case, this process looks again until the gate is full or has less room.
        """
        values = {"gates": names(tuple(freed)), "freed": numbers(freed.values())}
        rows = self._rows(connection, {"channel": channel, "what": LIMITS, **values})
        return [gate for (gate,) in rows]

    def sql(self) -> Any:
        room = f"CASE WHEN left(e.gate, 1) = '@' THEN {queue_free('substr(e.gate, 2)')} ELSE {free('e.gate')} END"
        behind_gates = "SELECT FROM {jobs} j WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL"
        in_queue = "SELECT FROM {jobs} j WHERE j.state = 'queued' AND j.queue = substr(e.gate, 2)"
        return filled_in(
            f"""WITH {MOMENT}, {BUSY}, open AS MATERIALIZED (
    SELECT e.gate, r.free <= e.freed * (SELECT count(*) FROM {{processes}} WHERE kind = 'worker') AS was_full
    FROM unnest(CAST(:gates AS text[]), CAST(:freed AS int[])) e (gate, freed)
    CROSS JOIN LATERAL (SELECT {room} AS free OFFSET 0) r
    WHERE r.free > 0 AND (EXISTS ({behind_gates}) OR left(e.gate, 1) = '@' AND EXISTS ({in_queue}))
), told AS MATERIALIZED (
    SELECT pg_notify(:channel, :what) WHERE EXISTS (SELECT FROM open WHERE was_full)
)
SELECT e.gate FROM unnest(CAST(:gates AS text[])) e (gate)
WHERE EXISTS (SELECT FROM told) OR e.gate NOT IN (SELECT gate FROM open)""",
            self.tables,
        )


class ForgetStarts(RenderedStatement):
    """Delete the starts of gates behind which nothing has started for a day. No rate has a longer period."""

    def sql(self) -> Any:
        old = f"clock_timestamp() - interval '{DAY:.0f} s'"
        later = f"SELECT FROM {{starts}} l WHERE l.gate = s.gate AND l.started_at >= {old}"
        return filled_in(
            f"DELETE FROM {{starts}} s WHERE s.started_at < {old} AND NOT EXISTS ({later}) RETURNING 1", self.tables
        )


class Spend(RenderedStatement):
    """Take starts behind a gate for work that is not a job. The caller holds the limits lock."""

    def __call__(self, connection: Connection, gate: str, number: int) -> bool:
        """Take `number` starts if that many are free.

        Return True if they were taken, or if nothing limits the gate.
        """
        ((is_limited, taken),) = self._run(connection, {"gate": gate, "number": number}).all()
        return taken == number or not is_limited

    def sql(self) -> Any:
        return filled_in(_SPEND, self.tables)


_SPEND = f"""
WITH {MOMENT}, {BUSY}, gate AS MATERIALIZED (
    SELECT {free("CAST(:gate AS text)")} AS free, last.started_at AS last_at, coalesce(last.total, 0) AS total
    FROM (SELECT) one LEFT JOIN LATERAL ({last_start("CAST(:gate AS text)")}) last ON true
), shifted AS (
    {shifted("SELECT CAST(:gate AS text) AS gate, last_at FROM gate")}
), logged AS (
    INSERT INTO {{starts}} (gate, started_at, total, count)
    SELECT CAST(:gate AS text), (SELECT now FROM moment), gate.total + :number, :number
    FROM gate WHERE gate.free >= :number
    RETURNING 1
)
SELECT gate.free IS NOT NULL, (SELECT count(*) FROM logged) * :number FROM gate
"""
