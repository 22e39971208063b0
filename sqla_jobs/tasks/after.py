"""The options `after`, `if_failed` and `batch`, for jobs that wait for other jobs and for jobs in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.database.commits import check_may_flush
from sqla_jobs.database.notify import after_commit
from sqla_jobs.database.sharding import check_shard, has_shard, put_into
from sqla_jobs.database.subscribers import BLOCKED
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.row import id_in
from sqla_jobs.models.types import IfFailed, JobState
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.queries.edges import AFTER_ALL, AddEdges, HangsOn
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.resolve import Judge, Judgement
from sqla_jobs.rules.wording import plural

_MOST_EDGES = 1_000_000
"""The maximum number of edges that one enqueue inserts."""


def check_after(given: dict[str, Any]) -> None:
    """Check the options `after`, `if_failed` and `batch`, and make `after` a tuple. Raises `ArgumentsError`."""
    if "after" in given:
        given["after"] = _checked(given["after"])
        if not given["after"]:
            del given["after"]
            given.pop("if_failed", None)
    if "if_failed" in given and "after" not in given:
        raise ArgumentsError(f"if_failed={given['if_failed']!r:.60} needs after=, the jobs or batches that may fail")


def _checked(after: object) -> tuple[JobMixin | BatchMixin, ...]:
    several = after if isinstance(after, Sequence) and not isinstance(after, str) else [after]
    for one in several:
        if not isinstance(one, JobMixin | BatchMixin):
            hint = ": give the job itself, session.get(jobs.Job, id)" if isinstance(one, int) else ""
            raise ArgumentsError(f"after takes jobs and batches, one or a list, got {one!r:.60}{hint}")
    return tuple(dict.fromkeys(several))


class _Statements:
    """The SQL statements for one application's tables, built once."""

    def __init__(self, models: Models[Any]) -> None:
        tables = Tables(models)
        self.judge = Judge(tables)
        self.hangs_on = HangsOn(tables)
        self.add_edges = AddEdges(tables)


_statements_of = lru_cache(maxsize=256)(_Statements)


class Begun(NamedTuple):
    """The findings of one enqueue before it inserts jobs."""

    values: Mapping[str, Any]
    """The column values of the new jobs."""
    needs: Sequence[int | None]
    """The ids of the jobs in `after`, in the same order, with None in place of each batch."""
    batches: Sequence[int | None]
    """The ids of the batches in `after`, in the same order, with None in place of each job."""


class Waiting:
    """The options `after`, `if_failed` and `batch` of one enqueue."""

    def __init__(self, models: Models[Any], options: Mapping[str, Any]) -> None:
        self._models = models
        self._after: tuple[JobMixin | BatchMixin, ...] = options.get("after", ())
        self._batch: BatchMixin | None = options.get("batch")
        self.is_after: bool = bool(self._after)
        """True if the jobs are enqueued after other jobs or batches."""
        self.named: list[JobMixin | BatchMixin] = [*self._after, *([] if self._batch is None else [self._batch])]
        """The jobs and batches in the options."""
        self._if_failed = IfFailed(options.get("if_failed", IfFailed.cancel))
        self._statements = _statements_of(models)

    def begin(self, session: Session) -> Begun:
        """Look up the jobs and batches to wait for, and the batch to join. Raises `ArgumentsError`."""
        if self.is_after or (self._batch is not None and instance_state(self._batch).pending):
            check_may_flush(session)
        needs, batches = self._named(session)
        joined = [] if self._batch is None else [self._id(session, self._batch)]
        found = self._statements.judge(session, needs, batches, joined, self._if_failed)
        self._check_exist("job", needs, found.job_ids)
        self._check_exist("batch", [*batches, *joined], found.batch_ids)
        for batch_id in joined:
            if batch_id not in found.open_batch_ids:
                raise ArgumentsError(
                    f"batch {batch_id} is finished, and a job after it could start: no job can join it; "
                    "enqueue jobs from jobs of the batch, which keeps it open, or make a new batch"
                )
            if self._after and self._statements.hangs_on(session, _given(needs), _given(batches), batch_id):
                raise ArgumentsError(
                    f"a job of batch {batch_id} cannot wait for that batch: each would wait for the other for ever"
                )
        values = {"batch_id": joined[0]} if joined else {}
        return Begun({**values, **self._waits(found)} if self._after else values, needs, batches)

    def check_shards(self, session: Session, shard: Any) -> None:
        """Raise `ArgumentsError` if one of the jobs and batches is in another shard than the new job.

        A new batch is added in the shard of this job.
        """
        new = [one for one in self.named if isinstance(one, BatchMixin) and not has_shard(one)]
        for one in self.named:
            if one not in new:
                check_shard(session, one, shard, repr(one))
        for one in new:
            put_into(one, shard)
            session.add(one)

    def _waits(self, found: Judgement) -> dict[str, Any]:
        """Return the column values of a job that is enqueued after other jobs.

        A job after a failed job is blocked, too, and a worker cancels it later. It is not cancelled here, because
        somebody may be retrying the failed job. That retry could not revive a job whose insertion is not yet committed.
        """
        if found.state is None:
            return {"if_failed": self._if_failed}
        return {
            "state": JobState.blocked,
            "if_failed": self._if_failed,
            "waits_for": found.needs,
            "waits_at": found.place or AFTER_ALL,
        }

    def end(self, session: Session, begun: Begun, ids: Sequence[int]) -> None:
        """Insert the edges of the inserted jobs."""
        if len(ids) * len(self._after) > _MOST_EDGES:
            raise ArgumentsError(
                f"{plural(len(ids), 'job')} after {len(self._after):,} jobs are more than {_MOST_EDGES:,} pairs: "
                "put those jobs into a batch, and enqueue after the batch"
            )
        self._statements.add_edges(session, ids, begun.needs, begun.batches)
        after_commit(session, self._models.Job, self._models.channel, BLOCKED)

    def _named(self, session: Session) -> tuple[list[int | None], list[int | None]]:
        """Return the ids of the jobs and of the batches in `after`: two lists, with None in place of the other kind."""
        ids = [self._id(session, one) for one in self._after]
        are_jobs = [isinstance(one, JobMixin) for one in self._after]
        pairs = list(zip(ids, are_jobs, strict=True))
        return [one if is_job else None for one, is_job in pairs], [None if is_job else one for one, is_job in pairs]

    def _id(self, session: Session, one: JobMixin | BatchMixin) -> int:
        if not isinstance(one, (self._models.Job, self._models.Batch)):
            raise ArgumentsError(f"{one!r} belongs to another Jobs")
        if (row_id := id_in(session, one)) is None:
            raise ArgumentsError(f"{one!r} is not in the database: enqueue it in this session first, or commit it")
        return row_id

    @staticmethod
    def _check_exist(noun: str, wanted: Sequence[int | None], found: Sequence[int]) -> None:
        if missing := set(_given(wanted)).difference(found):
            raise ArgumentsError(
                f"there is no {noun} {min(missing)}: it has been deleted, or the transaction that adds it "
                "has not committed; commit that first, or enqueue both in one transaction"
            )


def _given(ids: Sequence[int | None]) -> list[int]:
    """Return the ids that are not None."""
    return [one for one in ids if one is not None]
