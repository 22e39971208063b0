"""The figures on the page of tasks: the attempts that started in a span, their outcomes and durations, by task.

If there are many attempts, the figures come from a sample, and up to `_FAILURES` failures are counted exactly. So the
page costs the same for any number of attempts. The figures of a task that is too rare for the sample come from the jobs
of its schedules, which an index finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import and_, case, func, or_, select, true
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data.failed_runs import BAD
from sqla_jobs.dashboard.data.sampling import Sample, sample_since
from sqla_jobs.dashboard.data.statistics import Span, halves, pair, seconds
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.rules.wording import Count

_SAMPLE = 5_000
_FAILURES = 10_000
_FEW = 3
"""The minimum number of a task's attempts in a sample. With fewer, the jobs of its schedules are read instead."""
_SCHEDULED = 100
"""The maximum number of jobs read for each schedule of a rare task, the newest first."""
_MOST_SCHEDULED = 2_000
_MARGIN = timedelta(minutes=1)
"""The maximum time by which the order of run ids may differ from that of starts."""
_LATEST = timedelta(days=1)
"""The maximum delay of an attempt after its job's tick. Attempts that start later are not found."""


class Seen(NamedTuple):
    """The examined attempts of one task."""

    starts: int = 0
    failures: int = 0
    retries: int = 0
    wait: tuple[float, float] | None = None
    run: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """One task's attempts that started in a span and have ended."""

    task: str
    starts: Count
    failures: Count
    """Attempts that failed, or were lost with their process."""
    retries: Count
    """Failures that are followed by a retry."""
    running: int
    """The number of its running jobs, including those that a worker has claimed ahead."""
    looked_at: int
    """The number of attempts from which `wait` and `run` are computed."""
    wait: tuple[float, float] | None
    """The median and 95th percentile of the wait of last attempts, from a job's due time to its start, in seconds."""
    run: tuple[float, float] | None
    """The median and the 95th percentile of the duration of an attempt, in seconds."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """The figures of all declared tasks, and of other tasks that ran."""

    figures: list[TaskFigures]
    sampled: int | None
    """The number of examined attempts; None if all were examined."""
    are_failures_counted: bool
    """True if failures were counted exactly, False if they come from the sample."""


def read_tasks(session: Session, jobs: Jobs[Any], span: Span, now: datetime) -> Tasks:
    """Return the figures of all tasks in one span, by name. The tasks must have been imported."""
    start = now - span.length
    sample = sample_since(session, jobs, start - _MARGIN, _SAMPLE)
    seen = {row[0]: _seen(row) for row in ask(session, jobs, _of_sample(jobs, sample, start))}
    counted: dict[str, Seen] = {}
    rare: dict[str, Seen] = {}
    if not sample.is_whole:
        counted = {row[0]: Seen(0, *row[1:]) for row in ask(session, jobs, _newest_failures(jobs, start))}
        common = [task for task, one in seen.items() if one.starts >= _FEW]
        rare = {row[0]: _seen(row) for row in ask(session, jobs, _of_schedules(jobs, start, but_for=common))}
    running = {row[0]: row[1] for row in ask(session, jobs, _running(jobs))}
    is_counted = sum(one.failures for one in counted.values()) < _FAILURES
    declared = {task.name for task in jobs.tasks.values()}
    found: list[TaskFigures] = []
    for task in sorted({*declared, *seen, *counted, *rare, *running}):
        told = _Told(task, running.get(task, 0), counted.get(task, Seen()), is_counted)
        if sample.is_whole:
            found.append(told.exactly(seen.get(task, Seen())))
        elif task in rare or task not in seen:
            found.append(told.at_least(rare.get(task, Seen())))
        else:
            found.append(told.about(seen[task], sample.step))
    looked_at = sum(one.starts for one in seen.values())
    return Tasks(found, None if sample.is_whole else looked_at, is_counted)


@dataclass(frozen=True, slots=True)
class _Told:
    """The known numbers of a task, apart from the examined attempts."""

    task: str
    running: int
    counted: Seen
    is_counted: bool

    def exactly(self, seen: Seen) -> TaskFigures:
        """Return the figures if all attempts were examined."""
        return self._figures(seen, Count(seen.starts), Count(seen.failures), Count(seen.retries))

    def about(self, seen: Seen, step: int) -> TaskFigures:
        """Return the figures, estimated from every `step`th attempt."""
        counted = self.counted
        starts = _about(seen.starts * step, counted.failures)
        if self.is_counted:
            return self._figures(seen, starts, Count(counted.failures), Count(counted.retries))
        failures, retries = seen.failures * step, seen.retries * step
        return self._figures(seen, starts, _about(failures, counted.failures), _about(retries, counted.retries))

    def at_least(self, seen: Seen) -> TaskFigures:
        """Return the figures if some attempts were examined and there may be others."""
        counted = self.counted
        starts = Count(max(seen.starts, counted.failures), is_least=True)
        failures = Count(max(seen.failures, counted.failures), is_least=not self.is_counted)
        retries = Count(max(seen.retries, counted.retries), is_least=not self.is_counted)
        return self._figures(seen, starts, failures, retries)

    def _figures(self, seen: Seen, starts: Count, failures: Count, retries: Count) -> TaskFigures:
        return TaskFigures(self.task, starts, failures, retries, self.running, seen.starts, seen.wait, seen.run)


def _about(estimate: int, least: int) -> Count:
    return Count(estimate, is_exact=False) if estimate >= least else Count(least, is_least=True)


def _seen(row: Any) -> Seen:
    return Seen(row.starts, row.failures, row.retries, pair(row.wait), pair(row.run))


def _of_sample(jobs: Jobs[Any], sample: Sample, start: datetime) -> Any:
    run: Any = jobs.Run
    source, runs = sample.runs(jobs, _named(run), run.id >= sample.first, run.started_at >= start)
    of_job = _job_of(jobs, runs)
    return _by_task(source.join(of_job, true()), runs, of_job)


def _of_schedules(jobs: Jobs[Any], start: datetime, *, but_for: Sequence[str]) -> Any:
    job: Any = jobs.Job
    run: Any = jobs.Run
    schedule: Any = jobs.Schedule
    newest = (
        select(job.id, *_needed(job))
        .where(job.schedule_id == schedule.id, job.scheduled_for >= start - _LATEST)
        .order_by(job.scheduled_for.desc())
        .limit(_SCHEDULED)
        .correlate(schedule)
        .lateral("newest")
    )
    rare = select(newest).select_from(schedule).join(newest, true()).where(schedule.task.not_in(but_for))
    ticked = rare.limit(_MOST_SCHEDULED).subquery("ticked")
    runs = select(*_named(run)).where(run.job_id == ticked.c.id, run.started_at >= start).lateral("ended")
    return _by_task(ticked.join(runs, true()), runs.c, ticked)


def _named(run: Any) -> list[Any]:
    return [run.job_id, run.outcome, run.started_at, run.finished_at]


def _needed(job: Any) -> list[Any]:
    return [job.task, job.run_at, job.finished_at]


def _by_task(source: Any, run: Any, of_job: Any) -> Any:
    """Select the figures of the attempts in `source`, by task."""
    came_to_an_end = run.outcome.in_(["succeeded", *BAD])
    ended_its_job = and_(came_to_an_end, of_job.c.finished_at == run.finished_at)
    seen = (
        select(
            of_job.c.task,
            run.outcome,
            _is_retried(run, of_job).label("is_retried"),
            case((ended_its_job, seconds(run.started_at - of_job.c.run_at))).label("waited"),
            case((came_to_an_end, seconds(run.finished_at - run.started_at))).label("took"),
        )
        .select_from(source)
        .subquery("seen")
    )
    return select(
        seen.c.task,
        func.count().label("starts"),
        func.count().filter(seen.c.outcome.in_(BAD)).label("failures"),
        func.count().filter(seen.c.is_retried).label("retries"),
        halves(seen.c.waited).label("wait"),
        halves(seen.c.took).label("run"),
    ).group_by(seen.c.task)


def _newest_failures(jobs: Jobs[Any], start: datetime) -> Any:
    """Count the newest failures and retries by task."""
    run: Any = jobs.Run
    bad = (
        select(run.job_id, run.outcome, run.finished_at)
        .where(run.outcome.in_(BAD), run.finished_at >= start, run.started_at >= start)
        .order_by(run.finished_at.desc())
        .limit(_FAILURES)
        .subquery("bad")
    )
    of_job = _job_of(jobs, bad.c)
    return (
        select(of_job.c.task, func.count(), func.count().filter(_is_retried(bad.c, of_job)))
        .select_from(bad.join(of_job, true()))
        .group_by(of_job.c.task)
    )


def _job_of(jobs: Jobs[Any], run: Any) -> Any:
    """Select the job of each of these runs. LIMIT makes the planner look up each row by primary key."""
    job: Any = jobs.Job
    found = select(*_needed(job)).where(job.id == run.job_id)
    return found.limit(1).lateral("of_job")


def _is_retried(run: Any, of_job: Any) -> Any:
    """Return the condition that a retry follows this attempt."""
    goes_on = of_job.c.finished_at.is_distinct_from(run.finished_at)
    return or_(run.outcome == "retried", and_(run.outcome == "lost", goes_on))


def _running(jobs: Jobs[Any]) -> Any:
    job: Any = jobs.Job
    return select(job.task, func.count()).where(job.state == "running").group_by(job.task)
