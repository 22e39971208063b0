"""The newest attempts that have ended, from which pages compute their statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask

NEWEST = 10_000
"""The maximum number of attempts that a page reads."""
_BAD = ("failed", "retried", "lost")
_EPOCH = datetime(2000, 1, 3, tzinfo=UTC)  # a Monday


@dataclass(frozen=True, slots=True)
class Span:
    """A period that ends now, divided into `buckets` of equal width."""

    name: str
    title: str
    width: timedelta
    buckets: int

    @property
    def length(self) -> timedelta:
        """The length of all buckets."""
        return self.width * self.buckets

    def first(self, now: datetime) -> datetime:
        """Return the start of the first bucket."""
        return _EPOCH + (now - _EPOCH) // self.width * self.width - self.width * (self.buckets - 1)


SPANS = {
    "hour": Span("hour", "Last hour", timedelta(minutes=2), 30),
    "day": Span("day", "Last day", timedelta(hours=1), 24),
    "week": Span("week", "Last week", timedelta(hours=6), 28),
}


@dataclass(frozen=True, slots=True)
class Period:
    """The time over which statistics are computed, in `buckets` parts of equal width."""

    title: str
    start: datetime
    width: timedelta
    buckets: int
    is_cut: bool
    """True if it is shorter than was asked for, since there are more attempts than a page reads."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The outcomes of some attempts, and their durations in seconds."""

    ended: int = 0
    succeeded: int = 0
    failed: int = 0
    """Attempts that failed, or were lost with their process."""
    retried: int = 0
    """Failures that are followed by a retry."""
    wait: tuple[float, float] | None = None
    """The median and 95th percentile of the wait of last attempts, from a job's due time to its start."""
    run: tuple[float, float] | None = None
    """The median and 95th percentile of the duration of an attempt."""

    @property
    def total(self) -> int:
        """The number of attempts that succeeded or failed."""
        return self.succeeded + self.failed


def read_period(session: Session, jobs: Jobs[Any], span: Span, now: datetime) -> Period:
    """Return the span or, if it has `NEWEST` attempts or more, the time in which the newest of them ended."""
    start, newest = span.first(now), _newest(jobs)
    ended = sa.select(sa.func.count(), sa.func.min(newest.c.finished_at)).where(newest.c.finished_at >= start)
    number, oldest = ask(session, jobs, ended).one()
    if number < NEWEST:
        return Period(span.title, start, span.width, span.buckets, is_cut=False)
    width = max((now - oldest) / span.buckets, timedelta(milliseconds=1))
    return Period(f"Newest {NEWEST:,} runs", oldest, width, span.buckets, is_cut=True)


def runs_in(jobs: Jobs[Any], period: Period) -> Any:
    """Return a subquery of the attempts that ended in a period, with columns of their jobs, or NULL if deleted."""
    job: Any = jobs.Job
    newest = _newest(jobs)
    of_job = sa.select(job.task, job.run_at, job.finished_at.label("job_finished_at"))
    # LIMIT makes the planner look up each row by primary key
    found = of_job.where(job.id == newest.c.job_id).limit(1).lateral("of_job")
    runs = sa.select(newest, *found.c).select_from(newest.outerjoin(found, sa.true()))
    return runs.where(newest.c.finished_at >= period.start).subquery("ended")


def _newest(jobs: Jobs[Any]) -> Any:
    run: Any = jobs.Run
    named = (run.id, run.job_id, run.outcome, run.started_at, run.finished_at)
    return sa.select(*named).order_by(run.id.desc()).limit(NEWEST).subquery("newest")


def bucket_of(runs: Any, period: Period) -> Any:
    """Return an SQL expression for the number of the bucket in which an attempt ended."""
    place = sa.func.floor(_seconds(runs.c.finished_at - sa.literal(period.start)) / period.width.total_seconds())
    return sa.cast(sa.func.least(place, period.buckets - 1), sa.Integer)


def read_figures(
    session: Session, jobs: Jobs[Any], period: Period, key: Callable[[Any], Any]
) -> tuple[Figures, dict[Any, Figures]]:
    """Return the figures of all attempts in a period, and the figures by a key, which is an SQL expression."""
    runs = runs_in(jobs, period)
    keyed = sa.select(runs, key(runs).label("key")).subquery("keyed")
    run, by_key = keyed.c, keyed.c.key
    is_bad, is_last = run.outcome.in_(_BAD), run.job_finished_at == run.finished_at
    came_to_an_end = sa.or_(is_bad, run.outcome == "succeeded")
    goes_on = sa.and_(run.outcome == "lost", is_last.is_not(True))
    query: Any = sa.select(
        sa.func.grouping(by_key),
        by_key,
        sa.func.count(),
        sa.func.count().filter(run.outcome == "succeeded"),
        sa.func.count().filter(is_bad),
        sa.func.count().filter(sa.or_(run.outcome == "retried", goes_on)),
        _halves(sa.case((sa.and_(came_to_an_end, is_last), _seconds(run.started_at - run.run_at)))),
        _halves(sa.case((came_to_an_end, _seconds(run.finished_at - run.started_at)))),
    )
    whole, found = Figures(), dict[Any, Figures]()
    rows = ask(session, jobs, query.group_by(sa.func.grouping_sets(by_key, sa.func.row())))
    for is_whole, of, ended, succeeded, failed, retried, wait, took in rows:
        one = Figures(ended, succeeded, failed, retried, _pair(wait), _pair(took))
        if is_whole:
            whole = one
        else:
            found[of] = one
    return whole, found


def _seconds(interval: Any) -> Any:
    return sa.func.date_part("epoch", interval)


def _halves(values: Any) -> Any:
    """Return an SQL expression for the median and the 95th percentile."""
    return sa.func.percentile_cont(sa.literal([0.5, 0.95], sa.ARRAY(sa.Double))).within_group(values)


def _pair(values: Sequence[float | None] | None) -> tuple[float, float] | None:
    if values is None or values[0] is None or values[1] is None:
        return None
    return max(0.0, values[0]), max(0.0, values[1])
