"""Findings about waiting jobs, and about jobs that do not end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import product
from shlex import quote
from typing import Any, NamedTuple

from sqlalchemy import Boolean, case, column, func, select, text, true, values
from sqlalchemy import Text as TextType
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import LIVE, PARKED
from sqla_jobs.monitoring.finding import Finding, ask, warning, well
from sqla_jobs.monitoring.paused import paused_words, read_paused_tasks
from sqla_jobs.monitoring.processes import ProcessStatus
from sqla_jobs.monitoring.queues import COUNTED
from sqla_jobs.monitoring.steps import StepWait, read_waits
from sqla_jobs.queries.losses import lost_in_a_row
from sqla_jobs.queries.processes import age_of, is_alive, live_code
from sqla_jobs.rules.fitting import MOST_PASSED_OVER, UNFIT, read_codes
from sqla_jobs.rules.wording import Count, did_you_mean, duration, moment, near_names, plural, they_are
from sqla_jobs.runtime.figures import QueueStatus
from sqla_jobs.runtime.set_aside import EVENT_LOOP

_LOOKED_AT = 2_000
"""The number of jobs that are searched for unknown tasks at the head of each queue.

This many jobs with gates are searched, and this many without. Workers pass over jobs of unknown tasks, so these jobs
gather at the head.
"""
_SOME = 20
"""The maximum number of findings of one kind."""
_UNHEARD = 30.0
"""Seconds within which a job should end once its cancellation was requested."""
_START = "start one: python -m sqla_jobs.worker MODULE:ATTR"
_AHEAD, _FAR_AHEAD = 3600.0, 7 * 86_400.0
"""The minimum waits, in seconds, for a warning about a kept unique key: if ticks were skipped, and otherwise."""
_PUT_OFF = 3600.0
"""Seconds before a warning about a job that is postponed again and again."""
_IS_JOB = re.compile(r"job [1-9]\d{0,17}").fullmatch
_LATE = 60.0
"""Seconds before a warning about an overdue tick or job."""


def workers(queues: Sequence[QueueStatus], processes: Sequence[ProcessStatus]) -> Iterator[Finding]:
    """Find queues that have waiting jobs but are paused, or that no worker serves."""
    waiting = [queue for queue in queues if queue.queued]
    for queue in waiting:
        if queue.paused:
            how = paused_words(queue.paused_until, queue.pause_reason)
            found = f"it is {how}, with {plural(queue.queued, 'job')} waiting"
            yield warning(f"queue {queue.name}", found, f"sqla-jobs resume {queue.name}")
    if not any(process.alive and process.kind == "worker" for process in processes):
        how_many = sum(queue.queued for queue in waiting)
        also = f", and {they_are(how_many, 'job')} waiting" if how_many else ""
        names = sorted({"default", *(queue.name for queue in waiting)})
        serving = f" --queues {quote(','.join(names))}" if len(names) > 1 else ""
        remedy = f"{_START}{serving}; if one runs, its log shows why its processes end"
        yield warning("workers", f"none is alive{also}", remedy)
        return
    served = [queue.name for queue in queues if queue.is_served]
    for queue in waiting:
        if not queue.is_served and not queue.paused:
            near = near_names(queue.name, served)
            yield warning(
                f"queue {queue.name}",
                f"no live worker serves it, and {they_are(queue.queued, 'job')} waiting",
                f"start a worker with --queues {queue.name}; or move its jobs to a queue that is served: "
                f"sqla-jobs move --queue {queue.name} --to {near[0] if near else 'QUEUE'}",
            )


def stalled_processes(processes: Sequence[ProcessStatus]) -> Iterator[Finding]:
    """Find live processes that are making no progress."""
    for process in processes:
        if process.alive and process.stalled is not None:
            yield warning(
                f"process {process.pid} of {process.host}",
                f"it has made no progress for {duration(process.stalled)}, "
                f"and {they_are(process.begun, 'job')} running in it",
                "it was stopped, or C code holds its interpreter: `py-spy dump --native --pid "
                f"{process.pid}` on its host shows where; its worker kills it after --hung-after, "
                f"`kill -KILL {process.pid}` kills it now",
            )


def unclaimed_tasks(session: Session, jobs: Jobs[Any], queues: Sequence[QueueStatus]) -> Iterator[Finding]:
    """Find tasks of waiting jobs that are paused, or unknown to all live workers or to this application."""
    names = [queue.name for queue in queues if queue.queued]
    if not names:
        return
    jobs.tasks.load()
    job: Any = jobs.Job
    paused = {name: one for one in read_paused_tasks(session, jobs) for name in one.names}
    each = values(column("name", TextType), column("is_plain", Boolean), name="each")
    each = each.data([*product(names, (True, False))])
    first = (  # the first jobs in each part of the index
        select(job.queue, job.task, job.id)
        .where(job.state == "queued", job.queue == each.c.name, job.gates.is_(None) == each.c.is_plain)
        .order_by(job.priority, job.position)
        .limit(_LOOKED_AT)
        .correlate(each)
        .lateral("first")
    )
    counts = (
        select(first.c.queue, first.c.task, func.count(), func.min(first.c.id))
        .select_from(each.join(first, true()))
        .group_by(first.c.queue, first.c.task)
        .order_by(first.c.task, first.c.queue)
    )
    served = {queue.name for queue in queues if queue.is_served}
    live = read_codes(ask(session, jobs, live_code(jobs.models)))
    unclaimed, such_as = Counter[str](), dict[str, int]()
    for queue, task, count, job_id in ask(session, jobs, counts):
        is_unknown = queue in served and not any(code.may_know(task, queue) for code in live)
        if task in paused or task not in jobs.tasks or is_unknown:
            unclaimed[task] += count
            such_as[task] = job_id
    for task, count in unclaimed.items():
        number = Count(count, is_least=count >= _LOOKED_AT)
        if task in paused:
            how = paused_words(paused[task].paused_until, paused[task].pause_reason)
            found = f"it is {how}, with {plural(number, 'job')} waiting"
            yield warning(f"task {task[:200]}", found, f"sqla-jobs resume --task {paused[task].task[:200]}")
            continue
        if task in jobs.tasks:
            yield warning(
                f"task {task[:200]}",
                f"no live worker of its queue knows it, and {they_are(number, 'job')} waiting for it",
                "start workers with the code that declares it: the live ones are older, or of another application",
            )
            continue
        yield warning(
            f"task {task[:200]}",
            f"this application does not declare it, and {they_are(number, 'job')} waiting for it"
            f"{did_you_mean(task, jobs.tasks)}",
            f"deploy the code that declares it; or {_replacement(session, jobs, task, such_as[task])}; or cancel its "
            f"jobs: sqla-jobs cancel --task {task[:200]}",
        )


def _replacement(session: Session, jobs: Jobs[Any], task: str, job_id: int) -> str:
    """Return the remedy that lets another task run a missing task's jobs. `job_id` is one of these jobs."""
    job: Any = jobs.Job
    given = ask(session, jobs, select(func.jsonb_object_keys(job.args)).where(job.id == job_id, job.state == "queued"))
    names = {*given.scalars()}
    takes = {near: jobs.tasks[near].declaration.signature.by_name for near in near_names(task, jobs.tasks)}
    if fitting := [near for near, (required, known) in takes.items() if required <= names <= known]:
        return f"add its name to aliases=[…] of the task that replaces it: {fitting[0]:.200} takes the same arguments"
    others = "".join(f"; {near:.200} takes ({', '.join(sorted(known)):.200})" for near, (_, known) in takes.items())
    return (
        "add its name to aliases=[…] of the task that replaces it, if that takes the same arguments "
        f"({', '.join(sorted(names)):.200}{others}); if arguments were renamed, too, declare a task with the old name "
        "and arguments that calls the new one"
    )


def clocks(session: Session, jobs: Jobs[Any], processes: Sequence[ProcessStatus]) -> Iterator[Finding]:
    """Find enabled schedules that no clock fires."""
    schedule: Any = jobs.Schedule
    late = age_of(func.min(schedule.next_run_at))
    enabled, overdue = ask(session, jobs, select(func.count(), late).where(schedule.enabled)).one()
    if not enabled:
        return
    if not any(process.alive and process.kind == "clock" for process in processes):
        yield warning(
            "schedules",
            f"no clock is alive, and {they_are(enabled, 'schedule')} enabled",
            "start one: python -m sqla_jobs.clock MODULE:ATTR, or a worker without --no-clock",
        )
    elif overdue is not None and overdue > _LATE:
        yield warning(
            "schedules", f"one is overdue by {duration(overdue)}, though a clock is alive", "read the clock's log"
        )


def vanished_processes(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Count running jobs of processes that are not alive."""
    job, process = jobs.Job, jobs.Process
    alive = select(process.id).where(is_alive(process))
    orphaned = select(func.count()).where(job.state == "running", job.process_id.not_in(alive))
    if held := ask(session, jobs, orphaned).scalar_one():
        remedy = "a worker rescues them within its lease; start one if none runs"
        yield warning("jobs of vanished processes", f"{held:,}", remedy)
    else:
        yield well("jobs of vanished processes", "0")


def killers(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find jobs that lose their process again and again, such as those that run out of memory."""
    job, run = jobs.Job, jobs.Run
    since = func.clock_timestamp() - timedelta(days=1)
    lost = (
        select(run.job_id, func.count().label("times"))
        .where(run.outcome == text("'lost'"), run.finished_at > since)
        .group_by(run.job_id)
        .having(func.count() > 1)
        .subquery()
    )
    uses_attempts = job.max_lost.is_(None)
    left = case((uses_attempts, job.max_attempts - job.attempt), else_=job.max_lost - lost_in_a_row(jobs.models))
    live = select(job.id, job.task, lost.c.times, left, uses_attempts)
    rows = (
        live.join(lost, lost.c.job_id == job.id).where(job.state.in_(LIVE)).order_by(lost.c.times.desc()).limit(_SOME)
    )
    for job_id, task, times, number, are_attempts in ask(session, jobs, rows):
        yield warning(
            f"job {job_id}",
            f"{task[:200]} has lost its process {times} times since yesterday, "
            f"and {they_are(number, 'attempt' if are_attempts else 'lost run')} left",
            f"its runs show how (`sqla-jobs show {job_id}`); to stop it: sqla-jobs cancel {job_id}",
        )


def overdue_jobs(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find scheduled jobs that are due but that no worker has queued."""
    job: Any = jobs.Job
    first = (
        select(job.id, age_of(job.run_at).label("late"))
        .where(job.state == "scheduled")
        .order_by(job.run_at)
        .limit(_SOME)
    )
    for job_id, seconds in ask(session, jobs, first):
        if seconds > _LATE:
            yield warning(
                f"job {job_id}",
                f"it is scheduled, and overdue by {duration(seconds)}",
                "workers queue such jobs each second: start one if none is alive; else a session holds the row locked, "
                "or the server refuses to change it (both are findings of their own)",
            )


def unheard_cancels(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find running jobs that have not ended although their cancellation was requested."""
    job, process = jobs.Job, jobs.Process
    asked = age_of(job.cancel_requested_at)
    rows = (
        select(job.id, job.task, asked, process.host, process.pid)
        .join(process, process.id == job.process_id)
        .where(job.state == "running", job.cancel_requested_at.is_not(None), asked > _UNHEARD)
        .limit(_SOME)
    )
    for job_id, task, seconds, host, pid in ask(session, jobs, rows):
        yield warning(
            f"job {job_id}",
            f"{task[:200]} still runs, {duration(seconds)} after it was cancelled",
            f"code that does not return to Python cannot be interrupted: sqla-jobs cancel {job_id} --kill; "
            f"if its worker has no parent, on {host}: kill -9 {pid}. Give the task a timeout=, or the worker "
            "--timeout, after which the process is killed",
        )


def set_aside(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find rows that workers and clocks have set aside."""
    of_each = ask(session, jobs, select(jobs.Process.set_aside)).scalars()
    all_ = {name: str(why) for shown in of_each for name, why in shown.items()}
    reasons = {name: why for name, why in all_.items() if name != EVENT_LOOP and not why.startswith(UNFIT)}
    for name in sorted(reasons):
        yield warning(
            name[:100],
            reasons[name][:1000],
            "fix the cause that it names: the row, a trigger or constraint of yours, or a function that makes keys; "
            "workers try again every minute",
        )


def put_off(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find jobs that have never started, because each enqueue with their unique key postponed them again."""
    job: Any = jobs.Job
    columns = (job.id, job.task, job.times_replaced, job.created_at, job.run_at, job.started_at)
    scheduled = select(*columns).where(job.state == "scheduled").order_by(job.run_at)
    first = scheduled.limit(COUNTED).subquery("first").c
    since = func.clock_timestamp() - timedelta(seconds=_PUT_OFF)
    rows = (
        select(first.id, first.task, first.times_replaced, age_of(first.created_at), first.run_at)
        .where(first.times_replaced > 0, first.started_at.is_(None), first.created_at < since)
        .order_by(first.run_at)
        .limit(_SOME)
    )
    for job_id, task, times, seconds, run_at in ask(session, jobs, rows):
        yield warning(
            f"job {job_id}",
            f"{task[:200]} was first enqueued {duration(seconds)} ago and has not started: {plural(times, 'enqueue')} "
            f"with its unique key replaced it and put it off until {moment(run_at)}",
            f"give its Unique(on_conflict='replace') a max_delay=; sqla-jobs retry {job_id} runs it now",
        )


def event_loops(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find event loops that a coroutine blocks."""
    process: Any = jobs.Process
    held = select(process.pid, process.host, process.set_aside[EVENT_LOOP].astext)
    for pid, host, why in ask(session, jobs, held.where(is_alive(process), process.set_aside.has_key(EVENT_LOOP))):
        yield warning(
            f"event loop of process {pid} of {host}",
            f"{why[:1000]}: no other coroutine runs there",
            "a coroutine must not block: call blocking code by await asyncio.to_thread(…); to end that job now: "
            "sqla-jobs cancel ID --kill",
        )


def undeclared_schedules(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find schedules whose task this application does not declare."""
    schedule: Any = jobs.Schedule
    lost = select(schedule.name, schedule.task, schedule.next_run_at).where(schedule.enabled)
    lost = lost.where(schedule.task.not_in(list(jobs.tasks))).order_by(schedule.name).limit(_SOME)
    for name, task, next_at in ask(session, jobs, lost):
        when = f", next at {moment(next_at)}" if next_at is not None else ""
        yield warning(
            f"schedule {name[:200]}",
            f"it enqueues jobs of task {task[:200]}{when}, which this application does not declare"
            f"{did_you_mean(task, jobs.tasks)}",
            f"deploy the code that declares the task; or disable it: sqla-jobs schedule disable {quote(name[:200])}",
        )


class _Parked(NamedTuple):
    """A job with a unique key that will wait for a long time."""

    id: int
    task: str
    run_at: datetime
    wait: float
    """Seconds until it is due."""
    ticks: int
    """The number of ticks that were skipped because this job was live."""
    enqueues: int
    """The minimum number of enqueues that returned this job instead of a new one."""
    step: StepWait | None
    """The sleep or the wait for a signal that it is in."""

    @property
    def is_far(self) -> bool:
        return self.wait >= _FAR_AHEAD

    @property
    def swallows(self) -> bool:
        """True if ticks were skipped for it, or if enqueues returned it and its wait is too long to be intended."""
        return self.ticks > 0 or (self.enqueues > 0 and self.is_far)

    @property
    def finding(self) -> Finding:
        frees = f"sqla-jobs cancel {self.id} frees its key"
        if self.step is not None:
            until = self.step.words
            remedy = frees if self.step.signal is None else f"{self.step.signal} sends it; or {frees}"
        else:
            is_parked = self.run_at == PARKED
            until = "is parked" if is_parked else f"waits until {moment(self.run_at)}, in {duration(self.wait)}"
            remedy = f"sqla-jobs retry {self.id} runs it now; or {frees}"
        ticks, enqueues = plural(self.ticks, "tick"), plural(self.enqueues, "enqueue")
        skipped = f"; {ticks} of a schedule {'was' if self.ticks == 1 else 'were'} skipped for it" if self.ticks else ""
        answered = f"; at least {enqueues} returned this job so far" if self.enqueues else ""
        return warning(
            f"job {self.id}",
            f"it {until}, and keeps its unique key meanwhile: an enqueue of {self.task[:200]} with that key makes "
            f"no new job{skipped}{answered}",
            remedy,
        )


def parked_keys(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find jobs that keep a unique key for a very long time. No enqueue has returned them yet."""
    yield from (one.finding for one in _parked(session, jobs) if one.is_far and not one.swallows)


def swallowing_keys(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find jobs that keep a unique key for a long time, so that enqueues returned them and added no job."""
    yield from (one.finding for one in _parked(session, jobs) if one.swallows)


def _parked(session: Session, jobs: Jobs[Any]) -> list[_Parked]:
    job, tick = jobs.Job, jobs.Tick
    columns = (job.id, job.task, job.run_at, job.unique_key, job.times_returned, age_of(job.run_at).label("age"))
    scheduled = select(*columns).where(job.state == "scheduled").order_by(job.run_at.desc())
    last = scheduled.limit(COUNTED).subquery("last").c
    rows: list[Any] = ask(
        session,
        jobs,
        select(last.id, last.task, last.run_at, -last.age, func.coalesce(last.times_returned, 0))
        .where(last.unique_key.is_not(None), last.age < -_AHEAD)
        .order_by(last.times_returned.desc().nulls_last(), last.run_at.desc())
        .limit(_SOME),
    ).all()
    ids = [job_id for job_id, *_ in rows]
    skipped = select(tick.job_id, func.count()).where(tick.job_id.in_(ids), tick.outcome == "skipped")
    ticks: dict[int, int] = dict(ask(session, jobs, skipped.group_by(tick.job_id)).all()) if ids else {}
    steps = read_waits(session, jobs, {job_id: run_at for job_id, _, run_at, *_ in rows}) if ids else {}
    return [
        _Parked(one, task, run_at, wait, ticks.get(one, 0), times, steps.get(one))
        for one, task, run_at, wait, times in rows
    ]


def misfits(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find waiting jobs whose arguments do not fit a worker's code, and report them by task."""
    process: Any = jobs.Process
    rows = ask(session, jobs, select(process.host, process.pid, process.set_aside).where(is_alive(process)))
    shown = [
        (str(name), f"process {pid} of {host}", str(why)) for host, pid, all_ in rows for name, why in all_.items()
    ]
    unfit = {int(name[4:]): (who, why) for name, who, why in shown if why.startswith(UNFIT) and _IS_JOB(name)}
    job: Any = jobs.Job
    waiting = select(job.task, func.array_agg(job.id)).where(job.id.in_(unfit), job.state == "queued")
    for task, ids in ask(session, jobs, waiting.group_by(job.task).order_by(job.task)) if unfit else ():
        who, why = unfit[min(ids)]
        number = Count(len(ids), is_least=len(ids) >= MOST_PASSED_OVER)
        yield warning(
            f"task {task[:200]}",
            f"{who} leaves {plural(number, 'job')} to workers with other code, such as job {min(ids)}: {why[:500]}",
            f"sqla-jobs why {min(ids)} shows which worker takes it; start workers with the code that enqueued it, or "
            "give new parameters of the task a default. If no live worker takes it, the attempt fails after a minute",
        )
