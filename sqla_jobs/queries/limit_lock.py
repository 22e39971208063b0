"""The lock of limits, and what is done with it beside claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from sqla_jobs.calls.values import names
from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.queries.expressions import quoted
from sqla_jobs.queries.gates import MOMENT, filled_in, free, last_start
from sqla_jobs.queries.statement import RenderedStatement
from sqla_jobs.rules.checks import DAY

_SETTING = "current_setting('synchronous_commit')"
_AT_LEAST_ON = f"CASE {_SETTING} WHEN 'off' THEN 'on' ELSE {_SETTING} END"
"""Whatever the database's default is, a commit waits at least for the server's own disk."""


class Lock(RenderedStatement):
    """One at a time looks at what is free, and takes it. The commit that ends the lock waits for the disk."""

    def sql(self) -> Any:
        # by the table itself: some name its schema, and others leave it to their search path
        name = quoted(self.tables.jobs).replace("'", "''").replace(":", "\\:")
        key = f"hashtextextended('sqla_jobs limits', CAST(CAST('{name}' AS regclass) AS bigint))"
        return text(f"SELECT pg_advisory_xact_lock({key}){self._also}")

    _also = f", set_config('synchronous_commit', {_AT_LEAST_ON}, true)"


class LockUnflushed(Lock):
    """The commit that ends the lock need not be on disk when the next one looks: see `Flush`."""

    _also = ", set_config('synchronous_commit', 'off', true)"


class Flush(RenderedStatement):
    """What was committed before is on disk after this commit. No job starts under a claim that may be undone."""

    def sql(self) -> Any:
        setting = f"set_config('synchronous_commit', {_AT_LEAST_ON}, true)"
        return text(f"SELECT {setting}, pg_logical_emit_message(true, 'sqla_jobs', '')")


class TellOthers(RenderedStatement):
    """Those who listen look again, where a gate was full and any job waits behind gates."""

    def __call__(self, connection: Connection, channel: str, ended: Mapping[str, int]) -> None:
        """So many jobs at most `ended` behind each gate of late: one that has more room now was not full."""
        values = {"gates": names(tuple(ended)), "ended": [*ended.values()]}
        self._run(connection, {"channel": channel, "what": LIMITS, **values})

    def sql(self) -> Any:
        waiting = "SELECT FROM {jobs} j WHERE j.state LIKE 'queued' AND j.gates IS NOT NULL"
        gates = "unnest(CAST(:gates AS text[]), CAST(:ended AS int[])) e (gate, ended)"
        freed = f"SELECT FROM {gates} WHERE {free('e.gate')} <= e.ended"
        tell = f"SELECT pg_notify(:channel, :what) WHERE EXISTS ({waiting}) AND EXISTS ({freed})"
        return filled_in(f"WITH {MOMENT} {tell}", self.tables)


class ForgetStarts(RenderedStatement):
    """Starts behind gates behind which nothing has started for as long as any rate can look back."""

    def sql(self) -> Any:
        old = f"clock_timestamp() - interval '{DAY:.0f} s'"
        later = f"SELECT FROM {{starts}} l WHERE l.gate = s.gate AND l.started_at >= {old}"
        return filled_in(
            f"DELETE FROM {{starts}} s WHERE s.started_at < {old} AND NOT EXISTS ({later}) RETURNING 1", self.tables
        )


class Spend(RenderedStatement):
    """Starts behind a gate that are no jobs. Under the lock."""

    def __call__(self, connection: Connection, gate: str, number: int) -> bool:
        """Returns whether so many were free, and are taken now. A gate that nothing limits takes any number."""
        ((is_limited, taken),) = self._run(connection, {"gate": gate, "number": number}).all()
        return taken == number or not is_limited

    def sql(self) -> Any:
        return filled_in(_SPEND, self.tables)


_SPEND = f"""
WITH {MOMENT}, gate AS MATERIALIZED (
    SELECT {free("CAST(:gate AS text)")} AS free, last.started_at AS last_at, coalesce(last.total, 0) AS total
    FROM (SELECT) one LEFT JOIN LATERAL ({last_start("CAST(:gate AS text)")}) last ON true
), logged AS (
    INSERT INTO {{starts}} (gate, started_at, total, count)
    SELECT CAST(:gate AS text), greatest((SELECT now FROM moment), gate.last_at), gate.total + :number, :number
    FROM gate WHERE gate.free >= :number
    RETURNING 1
)
SELECT gate.free IS NOT NULL, (SELECT count(*) FROM logged) * :number FROM gate
"""
