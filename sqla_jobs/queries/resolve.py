"""The resolution of blocked jobs.

Each blocked job watches one of the jobs that it was enqueued after, until it has nothing left to wait for. There are no
counters of open prerequisites. When a job has ended, a worker locks the blocked jobs that watch it. A later statement
finds the next job for each blocked job to watch, and queues those with nothing left to watch. After the commit, the
worker checks whether any job that is watched now has ended in the meantime. So if two jobs end at the same moment, both
ends are always noticed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from sqla_jobs.models.types import LIVE_WORDS
from sqla_jobs.queries.edges import AFTER_ALL, with_gaps
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import SqlConnection, Statement
from sqla_jobs.queries.values import MANY, numbers

MOST = 500
"""The maximum number of jobs that one transaction resolves."""
NOBODY = 0
"""The `waits_for` of a blocked job that watches nothing but cannot be queued yet. The job is checked again soon."""
DELETED = -1
"""The `waits_for` of a job whose prerequisite has been deleted."""


_ENDED_PREREQUISITES = f"""
    SELECT d.waits_for, d.if_failed FROM (
      SELECT DISTINCT w.waits_for, w.if_failed FROM $jobs w
      WHERE w.state = 'blocked' AND w.waits_for IS NOT NULL AND $is_asked_for) d
    CROSS JOIN LATERAL (SELECT (SELECT p.state FROM $jobs p WHERE p.id = d.waits_for) AS state OFFSET 0) p
    WHERE d.waits_for = {NOBODY} OR p.state = 'succeeded' OR p.state IS NULL AND d.waits_for <> {DELETED}
      OR (p.state IS NULL OR p.state IN ('failed', 'cancelled')) AND d.if_failed IS DISTINCT FROM 'hold'"""
"""The watched jobs that have ended or been deleted, as far as this changes something for those that watch them."""
_NEXT: Pieces = MappingProxyType(
    {
        "next_prerequisite": read("next_prerequisite"),
        # a deleted job counts as cancelled
        "first_job": """
  SELECT e.place, e.needs_id AS needs, coalesce(p.state, 'cancelled') AS state
  FROM $edges_of_w LEFT JOIN LATERAL (SELECT j.state FROM $jobs j WHERE j.id = e.needs_id OFFSET 0) p ON true
  WHERE e.batch_id IS NULL AND p.state IS DISTINCT FROM 'succeeded'
    AND (w.if_failed <> 'run' OR p.state NOT IN ('failed', 'cancelled'))""",
        "nobody": str(NOBODY),
        "deleted": str(DELETED),
        "after_all": str(AFTER_ALL),
        "live": LIVE_WORDS,
    }
)


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

    text: ClassVar[str] = read("lock_watchers")
    pieces: Pieces = MappingProxyType(
        {
            "ended_prerequisites": _ENDED_PREREQUISITES,
            "is_asked_for": "w.id > :beyond AND w.waits_for = ANY (CAST(:watched AS bigint[]))",
            # a held job that watches a failed one is left alone, although others that watch the same job are cancelled
            "is_of_ended": """
      w.state = 'blocked' AND w.waits_for = ANY (ARRAY(SELECT waits_for FROM ended)) AND w.id > :beyond
      AND (w.if_failed IS DISTINCT FROM 'hold' OR w.waits_for = ANY (ARRAY(
        SELECT waits_for FROM ended WHERE if_failed = 'hold')))""",
        }
    )

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

    text: ClassVar[str] = read("judge")
    pieces: Pieces = MappingProxyType(
        {
            **_NEXT,
            "edges_of_w": "unnest(CAST(:needs AS bigint[]), CAST(:batches AS bigint[])) WITH ORDINALITY "
            "e (needs_id, batch_id, place)",
        }
    )

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


class Settle(Statement):
    """Find the next job that each blocked job has to wait for. Queue or cancel the jobs that no longer have to wait.

    The caller has locked the jobs, and the batches in `locked`.
    """

    text: ClassVar[str] = read("settle")
    pieces: Pieces = MappingProxyType({**_NEXT, "edges_of_w": "(SELECT * FROM $edges e WHERE e.job_id = w.id) e"})

    def __call__(self, connection: SqlConnection, ids: Sequence[int], locked: Sequence[int] = ()) -> list[Settled]:
        values = {"ids": numbers(ids), "locked": numbers(locked)}
        return [Settled(*row) for row in self._rows(connection, values)]


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

    text: ClassVar[str] = """
        SELECT EXISTS (SELECT FROM $jobs w WHERE w.state = 'blocked' AND w.waits_for IS NOT NULL),
          ARRAY(SELECT DISTINCT waits_for FROM ($ended_prerequisites
            ORDER BY d.waits_for LIMIT :many) ended ORDER BY 1),
          EXISTS (SELECT FROM $processes WHERE kind = 'worker' AND tasks IS NULL)"""
    pieces: Pieces = MappingProxyType(
        {"ended_prerequisites": _ENDED_PREREQUISITES, "is_asked_for": "w.waits_for > :beyond"}
    )

    def __call__(self, connection: SqlConnection, *, beyond: int = DELETED - 1) -> Blocked:
        """Return at most `MANY` ended jobs whose ids are higher than `beyond`."""
        (row,) = self._rows(connection, {"beyond": beyond, "many": MANY})
        return Blocked(*row)
