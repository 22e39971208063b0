"""The figures in the charts: runs of the last hour, day or week, by outcome, with wait and run times.

Up to `EXACT` runs are counted exactly. If there are more runs, up to `EXACT` failures are counted exactly, and the
other figures come from a sample, evenly spread over the ids. So a page costs the same for any number of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, Double, case, func, literal, select, true
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data.failed_runs import BAD, FailureGroup, failure_groups
from sqla_jobs.dashboard.data.sampling import Sample, sample_since
from sqla_jobs.jobs import Jobs

_SAMPLE = 3_000
EXACT = 2 * _SAMPLE
_EPOCH = datetime(2000, 1, 3, tzinfo=UTC)  # a Monday


@dataclass(frozen=True)
class Span:
    """A period that ends now, divided into buckets of equal width."""

    name: str
    title: str
    length: timedelta
    width: timedelta

    @property
    def buckets(self) -> int:
        """The number of buckets, including the current one."""
        return self.length // self.width

    def first(self, now: datetime) -> datetime:
        """Return the start of the first bucket."""
        return _EPOCH + (now - _EPOCH) // self.width * self.width - self.width * (self.buckets - 1)


SPANS = {
    "hour": Span("hour", "Last hour", timedelta(hours=1), timedelta(minutes=2)),
    "day": Span("day", "Last day", timedelta(days=1), timedelta(hours=1)),
    "week": Span("week", "Last week", timedelta(days=7), timedelta(hours=6)),
}


@dataclass
class Bucket:
    """The runs that ended in one bucket. Durations are in seconds, and `None` if no run ended."""

    start: datetime | None
    succeeded: float = 0
    failed: float = 0
    wait: tuple[float, float] | None = None
    """The median and 95th percentile of the wait, from a job's due time to its start. Only jobs that ended count."""
    run: tuple[float, float] | None = None

    @property
    def total(self) -> float:
        """The number of runs that succeeded or failed."""
        return self.succeeded + self.failed


@dataclass
class Statistics:
    """All buckets, in order, and their sum."""

    span: Span
    buckets: list[Bucket]
    whole: Bucket
    sampled: int | None = None
    """The number of examined runs; None if all were examined."""
    are_failures_counted: bool = True
    """True if failures were counted exactly, False if they come from the sample."""
    groups: list[FailureGroup] = field(default_factory=list[FailureGroup])

    @property
    def failure_rate(self) -> float | None:
        """The share of failures in the runs that ended, from 0 to 1."""
        return self.whole.failed / self.whole.total if self.whole.total else None


def read_statistics(session: Session, jobs: Jobs[Any], span: Span, now: datetime) -> Statistics:
    """Return the figures of one span."""
    start = span.first(now)
    by_start = {start + span.width * place: Bucket(start + span.width * place) for place in range(span.buckets)}
    figures = Statistics(span, list(by_start.values()), Bucket(None))
    run: Any = jobs.Run
    sample = sample_since(session, jobs, start, _SAMPLE)
    figures.sampled = None if sample.is_whole else sample.size
    for row in session.execute(_totals(jobs, span, start, sample), bind_arguments={"mapper": run}):
        bucket = figures.whole if row.bucket is None else by_start.get(row.bucket)
        if bucket is not None:
            bucket.succeeded, bucket.failed = row.succeeded * sample.step, row.failed * sample.step
            bucket.wait, bucket.run = pair(row.wait), pair(row.run)
    if not sample.is_whole:
        figures.are_failures_counted = _count_failures(session, jobs, span, start, by_start, figures.whole)
    figures.groups = failure_groups(session, jobs, start)
    return figures


def pair(values: Sequence[float | None] | None) -> tuple[float, float] | None:
    """Return a median and a 95th percentile from the database; `None` if there are no values."""
    if values is None or values[0] is None or values[1] is None:
        return None
    return max(0.0, values[0]), max(0.0, values[1])


def _bucket(moment: Any, span: Span) -> Any:
    return func.date_bin(literal(span.width, INTERVAL), moment, literal(_EPOCH))


def seconds(interval: Any) -> Any:
    """Return an SQL expression for the seconds of an interval."""
    return func.date_part("epoch", interval)


def halves(values: Any) -> Any:
    """Return an SQL expression for the median and the 95th percentile of values."""
    return func.percentile_cont(literal([0.5, 0.95], ARRAY(Double))).within_group(values)


def _totals(jobs: Jobs[Any], span: Span, start: datetime, sample: Sample) -> Any:
    """Select the totals of each bucket, and the totals of all buckets in a row whose bucket is NULL."""
    job: Any = jobs.Job
    table: Any = jobs.Run
    named = [table.job_id, table.outcome, table.started_at, table.finished_at]
    source, run = sample.runs(jobs, named, table.finished_at >= start)
    bucket = _bucket(run.finished_at, span)
    of_job = select(job.run_at).where(job.id == run.job_id, job.finished_at == run.finished_at)
    due = of_job.limit(1).lateral("due")
    said = run.outcome.in_(["succeeded", *BAD])
    seen = (
        select(
            bucket.label("bucket"),
            run.outcome.label("outcome"),
            case((said, seconds(run.finished_at - run.started_at))).label("took"),
            case((said, seconds(run.started_at - due.c.run_at))).label("waited"),
        )
        .select_from(source.outerjoin(due, true()))
        .subquery("seen")
    )
    return select(
        seen.c.bucket,
        func.count().filter(seen.c.outcome == "succeeded").label("succeeded"),
        func.count().filter(seen.c.outcome.in_(BAD)).label("failed"),
        halves(seen.c.waited).label("wait"),
        halves(seen.c.took).label("run"),
    ).group_by(func.grouping_sets(seen.c.bucket, func.row()))


def _count_failures(
    session: Session, jobs: Jobs[Any], span: Span, start: datetime, by_start: dict[datetime, Bucket], whole: Bucket
) -> bool:
    """Replace the sample's failures with exact counts. Return False if there are too many to count."""
    run: Any = jobs.Run
    newest = (
        select(run.finished_at)
        .where(run.outcome.in_(BAD), run.finished_at >= start)
        .order_by(run.finished_at.desc())
        .limit(EXACT)
        .subquery()
    )
    bucket = _bucket(newest.c.finished_at, span)
    rows = session.execute(select(bucket, func.count()).group_by(bucket), bind_arguments={"mapper": run}).all()
    if sum(count for _, count in rows) == EXACT:
        return False
    counts: dict[Any, int] = {row[0]: row[1] for row in rows}
    for at, one in by_start.items():
        one.failed = counts.get(at, 0)
    whole.failed = sum(counts.values())
    return True
