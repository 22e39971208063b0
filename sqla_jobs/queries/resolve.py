"""The resolution of blocked jobs.

Each blocked job watches one of the jobs that it was enqueued after, until it has nothing left to wait for. There are no
counters of open prerequisites. When a job has ended, a worker locks the blocked jobs that watch it. A later statement
finds the next job for each blocked job to watch, and queues those with nothing left to watch. After the commit, the
worker checks whether any job that is watched now has ended in the meantime. So if two jobs end at the same moment, both
ends are always noticed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.models.types import LIVE_WORDS
from sqla_jobs.queries.edges import AFTER_ALL, with_gaps
from sqla_jobs.queries.free_places import filled_in
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import MANY, numbers

MOST = 500
"""The maximum number of jobs that one transaction resolves."""
NOBODY = 0
"""The `waits_for` of a blocked job that watches nothing but cannot be queued yet. The job is checked again soon."""
DELETED = -1
"""The `waits_for` of a job whose prerequisite has been deleted."""


class Watchers(NamedTuple):
    """Jobs that watch an ended or deleted job, and that are now locked."""

    ids: list[int]
    batches: list[int]
    """Batches that these jobs wait for, and that are now locked, so that no job can join."""
    left: list[int]
    """The ended jobs of which some watchers before the last of these were skipped.

    Those watchers are locked, or belong to keys that others queue.
    """


class Settled(NamedTuple):
    """The new state of a job that was blocked."""

    job_id: int
    state: str
    """The job's state now.

    It is "later" if the job is still blocked because jobs are joining a batch that it waits for, or because somebody
    may be retrying the job whose failure would cancel it.
    """
    message: str
    """The message for workers about the job, if it is `queued` or `scheduled`."""
    watches: int
    """The id of the job that it watches now, if it is `blocked` or "later"."""


class LockWatchers(Statement):
    """Lock jobs that watch a job that has ended or been deleted. Skip jobs that are already locked."""

    def __call__(
        self,
        connection: SqlConnection,
        watched: Collection[int],
        *,
        beyond: int = 0,
        idle: float | None = None,
    ) -> Watchers:
        """Lock up to `MOST` jobs that watch one of these, with higher ids than `beyond`, until the transaction ends.

        If `idle` is given, the server ends the transaction once this process has been silent for that many seconds, and
        the commit does not wait for the disk. If a crash undoes the commit, a later look finds the jobs again.
        """
        milliseconds = None if idle is None else f"{1000 * idle:.0f}"
        values = {"watched": numbers(watched), "beyond": beyond, "most": MOST}
        values |= {"idle": milliseconds}
        (row,) = self._rows(connection, values)
        return Watchers(*row)

    def sql(self) -> Any:
        return filled_in(_LOCK, self.tables)


class Judgement(NamedTuple):
    """The job that new jobs have to wait for, and which of the named jobs and batches exist."""

    job_ids: list[int]
    batch_ids: list[int]
    open_batch_ids: list[int]
    """Those of the joined batches that are still open."""
    place: int | None
    """The place of the first job that has not ended as required, among the prerequisites."""
    needs: int | None
    """The id of the job to watch; None if there is none."""
    state: str | None
    """The state of that job; None if there is nothing to wait for."""


class Judge(Statement):
    """Find the job that new jobs have to wait for, and lock the prerequisites against deletion.

    Workers can still run the locked jobs.
    """

    def __call__(
        self,
        connection: SqlConnection,
        needs: Sequence[int | None],
        batches: Sequence[int | None],
        joined: Sequence[int],
        if_failed: str,
    ) -> Judgement:
        """Return the judgement on jobs enqueued after `needs` and `batches` that join the batches `joined`."""
        values = {
            "needs": with_gaps(needs),
            "batches": with_gaps(batches),
            "joined": numbers(joined),
            "if_failed": if_failed,
            "locked": "{}",
        }
        (row,) = self._rows(connection, values)
        return Judgement(*row)

    def sql(self) -> Any:
        return filled_in(_JUDGE, self.tables)


class Settle(Statement):
    """Find the next job that each blocked job has to wait for. Queue or cancel the jobs that no longer have to wait.

    The caller has locked the jobs, and the batches in `locked`.
    """

    def __call__(self, connection: SqlConnection, ids: Sequence[int], locked: Sequence[int] = ()) -> list[Settled]:
        values = {"ids": numbers(ids), "locked": numbers(locked), "channel": self.tables.channel}
        return [Settled(*row) for row in self._rows(connection, values)]

    def sql(self) -> Any:
        return filled_in(_SETTLE, self.tables)


class Blocked(NamedTuple):
    """What a look at all blocked jobs finds."""

    are_there: bool
    """True if any job is blocked."""
    ended: list[int]
    """The ids of watched jobs that have ended or been deleted, in ascending order. There may be more if it is full."""
    is_old: bool
    """True if any worker runs a version that does not know blocked jobs."""


class Look(Statement):
    """Look at all blocked jobs."""

    def __call__(self, connection: SqlConnection, *, beyond: int = DELETED - 1) -> Blocked:
        """Return at most `MANY` ended jobs whose ids are higher than `beyond`."""
        (row,) = self._rows(connection, {"beyond": beyond, "many": MANY})
        return Blocked(*row)

    def sql(self) -> Any:
        return filled_in(_LOOK, self.tables)


_ENDED = f"""
    SELECT d.waits_for, d.if_failed FROM (
      SELECT DISTINCT w.waits_for, w.if_failed FROM {{{{jobs}}}} w
      WHERE w.state = 'blocked' AND w.waits_for IS NOT NULL{{which}}) d
    CROSS JOIN LATERAL (SELECT (SELECT p.state FROM {{{{jobs}}}} p WHERE p.id = d.waits_for) AS state OFFSET 0) p
    WHERE d.waits_for = {NOBODY} OR p.state = 'succeeded' OR p.state IS NULL AND d.waits_for <> {DELETED}
      OR (p.state IS NULL OR p.state IN ('failed', 'cancelled')) AND d.if_failed IS DISTINCT FROM 'hold'"""
_WATCHED = " AND w.id > :beyond AND w.waits_for = ANY (CAST(:watched AS bigint[]))"
# A held job that watches a failed one is left alone, although others that watch the same job are cancelled.
_OF_ENDED = """w.state = 'blocked' AND w.waits_for = ANY (ARRAY(SELECT waits_for FROM ended)) AND w.id > :beyond
      AND (w.if_failed IS DISTINCT FROM 'hold' OR w.waits_for = ANY (ARRAY(
        SELECT waits_for FROM ended WHERE if_failed = 'hold')))"""
_LOCK = f"""
WITH turn AS MATERIALIZED (
    SELECT {{takes_turn}} AS is_mine
), ended AS MATERIALIZED ({_ENDED.format(which=_WATCHED)}
), watchers AS MATERIALIZED (
    SELECT w.id FROM {{jobs}} w WHERE {_OF_ENDED} AND (w.ordered_by IS NULL OR (SELECT is_mine FROM turn))
    ORDER BY w.id LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
), locked AS MATERIALIZED (
    SELECT b.id FROM {{batches}} b
    WHERE b.closed_at IS NULL AND b.id = ANY (ARRAY(
      SELECT e.batch_id FROM {{edges}} e
      WHERE e.batch_id IS NOT NULL AND e.job_id = ANY (ARRAY(SELECT id FROM watchers))))
    ORDER BY b.id FOR UPDATE SKIP LOCKED
)
SELECT ARRAY(SELECT id FROM watchers), ARRAY(SELECT id FROM locked),
  ARRAY(SELECT DISTINCT w.waits_for FROM {{jobs}} w WHERE {_OF_ENDED} AND w.id NOT IN (SELECT id FROM watchers)
     AND ((SELECT count(*) FROM watchers) < :most OR w.id <= (SELECT max(id) FROM watchers)))
WHERE CASE WHEN CAST(:idle AS text) IS NULL THEN true ELSE
  (set_config('idle_in_transaction_session_timeout', CAST(:idle AS text), true),
   set_config('synchronous_commit', 'off', true)) IS NOT NULL END
"""

# A deleted job counts as cancelled. `w` is the blocked job; `e` stands for its edges.
_FIRST_JOB = """
      SELECT e.place, e.needs_id AS needs, coalesce(p.state, 'cancelled') AS state
      FROM {{edges}} LEFT JOIN LATERAL (SELECT j.state FROM {{{{jobs}}}} j WHERE j.id = e.needs_id OFFSET 0) p ON true
      WHERE {which} AND e.batch_id IS NULL AND p.state IS DISTINCT FROM 'succeeded'
        AND (w.if_failed <> 'run' OR p.state NOT IN ('failed', 'cancelled'))
      ORDER BY e.place LIMIT 1"""
_FIRST_MEMBER = f"""
      SELECT m.id AS needs, m.state
      FROM {{edges}} CROSS JOIN LATERAL (
        (SELECT j.id, j.state FROM {{{{jobs}}}} j WHERE j.batch_id = e.batch_id AND w.if_failed <> 'run'
         AND j.state IN ('failed', 'cancelled') LIMIT 1)
        UNION ALL
        (SELECT j.id, j.state FROM {{{{jobs}}}} j WHERE j.batch_id = e.batch_id
         AND j.state IN {LIVE_WORDS} ORDER BY j.state, j.id DESC LIMIT 1)
        UNION ALL
        SELECT {NOBODY}, 'joining' FROM {{{{batches}}}} b
        WHERE b.id = e.batch_id AND b.closed_at IS NULL AND b.id <> ALL (CAST(:locked AS bigint[]))) m
      WHERE e.batch_id IS NOT NULL
      ORDER BY m.state = 'joining', m.state IN ('failed', 'cancelled') DESC LIMIT 1"""
# A place before waits_at is only checked again if nothing else is left to wait for: so a job after thousands does not
# check all of them at each end, and yet waits for one that was retried meanwhile. Batches can grow, so all edges to
# batches are checked each time. A failed prerequisite takes precedence over a live one.
_NEXT = f"""
    LEFT JOIN LATERAL ({_FIRST_JOB.format(which="e.place >= w.waits_at")}) a ON true
    LEFT JOIN LATERAL ({_FIRST_MEMBER}) b ON true
    LEFT JOIN LATERAL ({_FIRST_JOB.format(which="a.place IS NULL AND b.state IS NULL AND e.place < w.waits_at")}) c
      ON true
    CROSS JOIN LATERAL (
      SELECT coalesce(a.needs, c.needs) AS needs, coalesce(a.state, c.state) AS state,
        coalesce(a.place, c.place) AS place
      WHERE b.state IS NULL OR a.place IS NOT NULL AND b.state NOT IN ('failed', 'cancelled')
      UNION ALL
      SELECT b.needs, b.state, a.place
      WHERE b.state IN ('failed', 'cancelled') OR b.state IS NOT NULL AND a.place IS NULL) n"""
_OF_JOB = "(SELECT * FROM {edges} e WHERE e.job_id = w.id) e"
# An uncommitted retry of the failed job may not see the blocked one, and could not revive it: `stays` leaves that out.
_SETTLE = f"""
WITH waiting AS MATERIALIZED (
    SELECT w.id, coalesce(w.waits_at, 0) AS waits_at, w.run_at, coalesce(w.if_failed, 'cancel') AS if_failed
    FROM {{jobs}} w WHERE w.id = ANY (CAST(:ids AS bigint[])) AND w.state = 'blocked'
), found AS MATERIALIZED (
    SELECT w.*, n.place, n.needs, n.state
    FROM waiting w {_NEXT.format(edges=_OF_JOB)}
), stays AS MATERIALIZED (
    SELECT p.id FROM {{jobs}} p
    WHERE p.state IN ('failed', 'cancelled') AND p.id = ANY (ARRAY(
      SELECT f.needs FROM found f WHERE f.state IN ('failed', 'cancelled') AND f.if_failed = 'cancel'))
    FOR SHARE SKIP LOCKED
), decided AS MATERIALIZED (
    SELECT f.*, CASE
      WHEN f.state IS NULL AND f.run_at > statement_timestamp() THEN 'scheduled'
      WHEN f.state IS NULL THEN 'queued'
      WHEN f.state = 'joining' THEN 'later'
      WHEN f.state IN ('failed', 'cancelled') AND f.if_failed = 'cancel' THEN
        CASE WHEN f.needs IS NULL OR f.needs IN (SELECT id FROM stays) THEN 'cancelled' ELSE 'later' END
      ELSE 'blocked' END AS becomes
    FROM found f ORDER BY f.id
), numbered AS MATERIALIZED (
    SELECT d.*, CASE WHEN d.becomes = 'queued' THEN nextval('{{positions}}') END AS position FROM decided d
), settled AS (
    UPDATE {{jobs}} j SET
      state = CASE n.becomes WHEN 'later' THEN 'blocked' ELSE n.becomes END,
      position = coalesce(n.position, j.position),
      waits_for = CASE WHEN n.becomes IN ('queued', 'scheduled') THEN NULL ELSE coalesce(n.needs, {DELETED}) END,
      waits_at = CASE WHEN n.becomes IN ('queued', 'scheduled') THEN NULL ELSE coalesce(n.place, {AFTER_ALL}) END,
      finished_at = CASE n.becomes WHEN 'cancelled' THEN clock_timestamp() END
    FROM numbered n WHERE j.id = n.id AND j.id = ANY (CAST(:ids AS bigint[])) AND j.state = 'blocked'
    RETURNING j.id, n.becomes AS state, j.queue || CASE WHEN j.gates IS NULL THEN '' ELSE '{LIMITS}' END AS message,
      coalesce(j.waits_for, {NOBODY}) AS watches
), closed AS (
    UPDATE {{batches}} b SET closed_at = clock_timestamp()
    WHERE b.id = ANY (CAST(:locked AS bigint[])) AND b.id = ANY (ARRAY(
      SELECT e.batch_id FROM {{edges}} e
      WHERE e.batch_id IS NOT NULL
        AND e.job_id = ANY (ARRAY(SELECT s.id FROM settled s WHERE s.state IN ('queued', 'scheduled')))))
)
SELECT s.id, s.state, s.message, s.watches FROM settled s
WHERE (
  SELECT count(pg_notify(CAST(:channel AS text), m.message)) FROM (
    SELECT DISTINCT s.message FROM settled s WHERE s.state IN ('queued', 'scheduled')) m
  WHERE (SELECT count(*) FROM {{processes}} WHERE kind = 'worker') > 1) >= 0
ORDER BY s.id
"""

_GIVEN = "unnest(CAST(:needs AS bigint[]), CAST(:batches AS bigint[])) WITH ORDINALITY e (needs_id, batch_id, place)"
# FOR SHARE: with FOR KEY SHARE, a transaction with an old snapshot could join a batch that has been closed meanwhile
_JUDGE = f"""
WITH held AS MATERIALIZED (
    SELECT j.id FROM {{jobs}} j WHERE j.id = ANY (CAST(:needs AS bigint[])) ORDER BY j.id FOR KEY SHARE
), kept AS MATERIALIZED (
    SELECT b.id FROM {{batches}} b WHERE b.id = ANY (CAST(:batches AS bigint[])) ORDER BY b.id FOR KEY SHARE
), joined AS MATERIALIZED (
    SELECT b.id, b.closed_at FROM {{batches}} b WHERE b.id = ANY (CAST(:joined AS bigint[])) ORDER BY b.id FOR SHARE
)
SELECT ARRAY(SELECT id FROM held), ARRAY(SELECT id FROM kept UNION SELECT id FROM joined),
  ARRAY(SELECT id FROM joined WHERE closed_at IS NULL),
  n.place, n.needs, n.state
FROM (SELECT 0 AS waits_at, CAST(:if_failed AS text) AS if_failed) w
{_NEXT.format(edges=_GIVEN)}
"""

_LOOK = f"""
SELECT EXISTS (SELECT FROM {{jobs}} w WHERE w.state = 'blocked' AND w.waits_for IS NOT NULL),
  ARRAY(SELECT DISTINCT waits_for FROM ({_ENDED.format(which=" AND w.waits_for > :beyond")}
    ORDER BY d.waits_for LIMIT :many) ended ORDER BY 1),
  EXISTS (SELECT FROM {{processes}} WHERE kind = 'worker' AND tasks IS NULL)
"""
