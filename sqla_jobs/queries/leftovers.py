"""Rows to prune: runs of jobs that the application itself deleted, old entries of the audit log, and old ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.sql_text import NO_PIECES, Pieces, bound
from sqla_jobs.queries.values import numbers


class Found(NamedTuple):
    """The ids of rows to delete, and the highest id that the search has reached, or None at the end of the table."""

    ids: list[int]
    last: int | None


class Leftovers:
    """The pruning statements for one set of models. They run in a session's transaction."""

    def __init__(self, models: Models[Any]) -> None:
        self._tables = Tables(models)
        self._on = {"mapper": models.Job}

    def last_run(self, session: Session) -> int:
        """Return the highest run id."""
        return self._execute(session, "SELECT coalesce(max(id), 0) FROM $runs").scalar_one()  # type: ignore[no-any-return]

    def find_orphans(self, session: Session, *, after: int, older_than: float, limit: int) -> Found:
        """Among the next `limit` runs, return those that ended over `older_than` seconds ago and whose job is gone.

        A run is stored when its attempt ends, long after the job was committed. So a snapshot that contains the run but
        not the job shows that the job was deleted.
        """
        looked = f"SELECT r.id, r.finished_at AS at, {_HAS_NO_JOB} AS is_wanted FROM $runs r"
        return self._find(session, looked, after=after, older_than=older_than, limit=limit)

    def remove_orphans(self, session: Session, ids: Sequence[int]) -> int:
        """Delete the runs in `ids` that still have no job and are not locked. Return the number of deleted runs."""
        return int(self._execute(session, _REMOVE_ORPHANS, ids=numbers(ids)).rowcount)

    def find_old(self, session: Session, noun: str, *, after: int, older_than: float, limit: int) -> Found:
        """Among the next `limit` rows of the audit log or of ticks, return those over `older_than` seconds old.

        Ids nearly always grow with time, so the oldest rows come first.
        """
        looked = f"SELECT r.id, r.at, true AS is_wanted FROM ${noun} r"
        return self._find(session, looked, after=after, older_than=older_than, limit=limit)

    def remove_old(self, session: Session, noun: str, ids: Sequence[int]) -> int:
        """Delete these rows.

        Return the number of deleted rows. The rows are not locked first: a lock needs the right to update them, which
        no role needs otherwise.
        """
        remove = f"DELETE FROM ${noun} WHERE id = ANY (CAST(:ids AS bigint[]))"
        return int(self._execute(session, remove, ids=numbers(ids)).rowcount)

    def _find(self, session: Session, looked: str, **values: float) -> Found:
        ids, last, count = self._execute(session, _FIND, {"looked": looked}, **values).one()
        return Found(ids, last if count == values["limit"] else None)

    def _execute(self, session: Session, text: str, own: Pieces = NO_PIECES, **values: Any) -> Any:
        return session.execute(bound(text, self._tables, own), values, bind_arguments=self._on)


# looks the job up by its id: with NOT EXISTS the planner might read all jobs first
_HAS_NO_JOB = "(SELECT j.id FROM $jobs j WHERE j.id = r.job_id) IS NULL"
_FIND = """
WITH looked AS ($looked WHERE r.id > :after ORDER BY r.id LIMIT :limit)
SELECT coalesce(array_agg(id ORDER BY id) FILTER (WHERE is_wanted
  AND at < statement_timestamp() - CAST(:older_than AS float8) * INTERVAL '1 second'), '{}'), max(id), count(*)
FROM looked"""
_REMOVE_ORPHANS = f"""
WITH locked AS MATERIALIZED (
    SELECT r.id FROM $runs r WHERE r.id = ANY (CAST(:ids AS bigint[])) AND {_HAS_NO_JOB}
    ORDER BY r.id FOR UPDATE OF r SKIP LOCKED
)
DELETE FROM $runs WHERE id IN (SELECT id FROM locked)"""
