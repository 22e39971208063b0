"""The limits lock, the claims under it, and statements about the places and starts that they take."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.database.driver import committed_together, driver, execute
from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries.claim import ClaimFromLimitedQueue
from sqla_jobs.queries.claim_limited import NOTHING_ENDED, ClaimLimited, Gates, Look
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.statement import RenderedStatement
from sqla_jobs.queries.values import ALL, Among, Claimed, names
from sqla_jobs.rules.value_checks import DAY

_SETTING = "current_setting('synchronous_commit')"
_AT_LEAST_ON = f"CASE {_SETTING} WHEN 'off' THEN 'on' ELSE {_SETTING} END"
"""The synchronous_commit setting with which a commit waits for at least the server's own disk."""


class LockLimits(RenderedStatement):
    """Take the limits lock: only its holder looks for free places and takes them.

    The holder's commit waits for the disk.
    """

    text: ClassVar[str] = (
        f"SELECT pg_advisory_xact_lock($lock_key(limits)), set_config('synchronous_commit', {_AT_LEAST_ON}, true)"
    )


class LockUnflushed(RenderedStatement):
    """Take the limits lock.

    The holder's commit does not wait for the disk, so the next holder gets the lock sooner: see `Flush`.
    """

    text: ClassVar[str] = (
        "SELECT pg_advisory_xact_lock($lock_key(limits)), set_config('synchronous_commit', 'off', true)"
    )


class Flush(RenderedStatement):
    """Flush all earlier commits to disk, so that no job starts under a claim that a crash can undo."""

    text: ClassVar[str] = (
        f"SELECT set_config('synchronous_commit', {_AT_LEAST_ON}, true), pg_logical_emit_message(true, 'sqla_jobs', '')"
    )


class ClaimLocked:
    """The claims of limited jobs.

    Each claim counts jobs in a snapshot taken while it holds the lock. So concurrent claims together never exceed a
    limit.
    """

    def __init__(self, tables: Tables) -> None:
        self._lock = LockUnflushed(tables)
        self._lock_to_end = LockLimits(tables)
        self._flush = Flush(tables)
        self._behind_gates = ClaimLimited(tables)
        self._plain = ClaimFromLimitedQueue(tables)

    def __call__(
        self,
        connection: sa.Connection,
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
        connection: sa.Connection,
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

    def _rows(self, connection: sa.Connection, claim: RenderedStatement, values: dict[str, Any]) -> list[Any]:
        with committed_together(driver(connection)) as send:
            send(*self._lock.sent({}))
            answer = send(*claim.sent(values))
        return answer.fetchall()

    def _flush_after(self, connection: sa.Connection, claimed: Sequence[Claimed]) -> None:
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


class TellOfFreedPlaces(RenderedStatement):
    """Tell all workers that jobs behind limits may start, if there are other workers, and a gate still has room."""

    text: ClassVar[str] = f"""
        WITH $moment, $busy
        SELECT pg_notify($channel, '{LIMITS}')
        WHERE (SELECT count(*) FROM $processes WHERE kind = 'worker') > 1 AND EXISTS (
          SELECT FROM unnest(CAST(:gates AS text[])) e (gate)
          WHERE CASE WHEN left(e.gate, 1) = '@' THEN $queue_free(substr(e.gate, 2)) ELSE $free(e.gate) END > 0)"""

    def __call__(self, connection: sa.Connection, gates: Collection[str]) -> None:
        """`gates` are gates behind which places were freed, or queues such as `@mail`."""
        self._rows(connection, {"gates": names(tuple(gates))})


class ForgetStarts(RenderedStatement):
    """Delete the starts of gates behind which nothing has started for a day, if no window of the gate reaches back."""

    text: ClassVar[str] = f"""
        WITH $moment, gate AS MATERIALIZED (
            SELECT s.gate, max(s.started_at) AS last_at FROM $starts s GROUP BY s.gate
        )
        DELETE FROM $starts s USING gate g
        WHERE s.gate = g.gate AND g.last_at < least(
          (SELECT now FROM moment) - interval '{DAY:.0f} s',
          (SELECT min(w.since) FROM $limit_of(g.gate) l CROSS JOIN LATERAL $windows(g.gate) w WHERE l.rate IS NOT NULL))
        RETURNING 1"""


class Spend(RenderedStatement):
    """Take starts behind a gate for work that is not a job. The caller holds the limits lock."""

    text: ClassVar[str] = """
        WITH $moment, $busy, gate AS MATERIALIZED (
            SELECT $free(CAST(:gate AS text)) AS free, last.started_at AS last_at, coalesce(last.total, 0) AS total
            FROM (SELECT) one LEFT JOIN LATERAL ($last_start(s.gate = CAST(:gate AS text))) last ON true
        ), shifted AS (
            $shifted(SELECT CAST(:gate AS text) AS gate, last_at FROM gate)
        ), logged AS (
            INSERT INTO $starts (gate, started_at, total, count)
            SELECT CAST(:gate AS text), (SELECT now FROM moment), gate.total + :number, :number
            FROM gate WHERE gate.free >= :number
            RETURNING 1
        )
        SELECT gate.free IS NOT NULL, (SELECT count(*) FROM logged) * :number FROM gate"""

    def __call__(self, connection: sa.Connection, gate: str, number: int) -> bool:
        """Take `number` starts if that many are free.

        Return True if they were taken, or if nothing limits the gate.
        """
        ((is_limited, taken),) = self._run(connection, {"gate": gate, "number": number}).all()
        return taken == number or not is_limited
