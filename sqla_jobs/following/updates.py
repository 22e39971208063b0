"""The states of followed jobs and batches, and the statements that read them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from sqla_jobs.actions.batches import BatchCounts
from sqla_jobs.models.types import ENDED, JobState
from sqla_jobs.queries.statement import Statement
from sqla_jobs.rules.wording import plural


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """The state of a job at one point in time."""

    job_id: int
    """The id of the job."""
    task: str
    """The name of the job's task, as stored."""
    state: JobState
    """The state of the job."""
    attempt: int
    """The number of the current or last attempt; 0 before the first."""
    progress: float | None
    """The progress that the current or last attempt reported, from 0 to 1."""
    progress_message: str | None
    """The text reported with `progress`."""
    result: Any = None
    """The task's return value, decoded from JSON, once the job has succeeded."""
    error_type: str | None = None
    """The name of the last attempt's exception, such as `ValueError`, if the job has failed or been cancelled."""
    error: str | None = None
    """The exception's message."""

    @property
    def has_ended(self) -> bool:
        """True if the job has succeeded, failed or been cancelled."""
        return self.state in ENDED


class Followed(NamedTuple):
    """The job or batch that is followed."""

    noun: Literal["job", "batch"]
    id: int

    def __str__(self) -> str:
        return f"{self.noun} {self.id}"


Update = JobUpdate | BatchCounts
"""The state of a followed job or batch, at one point in time."""


def in_words(update: Update) -> str:
    """Return the state as the end of a sentence."""
    if isinstance(update, JobUpdate):
        return f"it is {update.state}, attempt {update.attempt}"
    return f"{update.ended:,} of {plural(update.total, 'job')} ended"


class ReadUpdates(Statement):
    """Read the states of some jobs, by id. Jobs that do not exist are missing from the result."""

    def __call__(self, connection: sa.Connection, job_ids: Collection[int]) -> dict[int, JobUpdate]:
        rows = self._run(connection, {"job_ids": list(job_ids)}).all()
        return {row[0]: JobUpdate(row[0], row[1], JobState(row[2]), *row[3:]) for row in rows}

    def sql(self) -> Any:
        jobs, runs = self.tables.jobs, self.tables.runs
        newest = sa.select(sa.func.max(runs.c.id)).where(runs.c.job_id == jobs.c.id).correlate(jobs).scalar_subquery()
        last = sa.select(runs.c.result, runs.c.error_type, runs.c.error).where(
            runs.c.id == newest, jobs.c.state.in_([str(state) for state in ENDED])
        )
        ended = last.correlate(jobs).lateral("ended")
        return (
            sa.select(
                jobs.c.id,
                jobs.c.task,
                jobs.c.state,
                jobs.c.attempt,
                jobs.c.progress,
                jobs.c.progress_message,
                ended.c.result,
                ended.c.error_type,
                ended.c.error,
            )
            .select_from(jobs.outerjoin(ended, sa.true()))
            .where(jobs.c.id == sa.any_(sa.bindparam("job_ids", type_=sa.ARRAY(sa.BigInteger))))
        )
