"""Counts the enqueues that returned an existing job with the same unique key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, Interval, func, literal_column, select, update

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import Tables, in_state, locked, unnest_text
from sqla_jobs.queries.statement import Statement
from sqla_jobs.queries.values import numbers


class CountReturned(Statement):
    """Count enqueues that returned a waiting job that is due in more than a minute.

    Other jobs are left out, so that the statement's locks never delay a worker that promotes due jobs. The statement
    skips locked jobs, such as those that an enqueuer holds until its transaction ends.
    """

    def __call__(self, connection: Connection, times: Mapping[int, int]) -> set[int]:
        """Count the enqueues. `times` maps a job's id to its number of enqueues.

        Return the ids of the jobs whose enqueues are not counted because their rows are locked.
        """
        values = {"ids": numbers(times), "times": numbers(times.values())}
        return set(self._run(connection, values).scalars())

    def sql(self) -> Any:
        jobs = self.tables.jobs
        given = unnest_text("given", id=("ids", BigInteger), times=("times", Integer))
        later = func.clock_timestamp() + literal_column("INTERVAL '1 minute'", Interval)
        rows = (
            select(jobs.c.id, given.c.times)
            .select_from(jobs.join(given, jobs.c.id == given.c.id))
            .where(in_state(jobs, "scheduled"), jobs.c.run_at > later)
        )
        mine = locked(rows, "mine", of=jobs)
        number = func.coalesce(jobs.c.times_returned, 0) + mine.c.times
        counted = update(jobs).where(jobs.c.id == mine.c.id).values(times_returned=number).cte("counted")
        return rows.with_only_columns(jobs.c.id).where(jobs.c.id.not_in(select(mine.c.id))).add_cte(counted)


@lru_cache(maxsize=16)
def count_returned(models: Models[Any]) -> CountReturned:
    """Return the statement for the jobs of these models."""
    return CountReturned(Tables(models))
