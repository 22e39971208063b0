"""Checks of jobs that wait, and of jobs that do not end."""

from __future__ import annotations

from sqla_jobs.models.types import LIVE
from sqla_jobs.monitoring.check import Check
from sqla_jobs.monitoring.failures import BAD, LOOKED_AT
from sqla_jobs.monitoring.queues import COUNTED
from sqla_jobs.runtime.set_aside import EVENT_LOOP

_SOME = 20
"""The maximum number of findings of one kind."""
_AHEAD, _FAR_AHEAD = 3600.0, 7 * 86_400.0
"""The minimum waits, in seconds, for a warning about a kept unique key: if ticks were skipped, and otherwise."""


WAITING_JOBS = (
    Check(
        name="workers",
        about="job {id}",
        rows=f"""
            SELECT * FROM (
              SELECT id, $age(run_at) AS late FROM $jobs WHERE state = 'scheduled' ORDER BY run_at LIMIT {_SOME}
            ) AS first WHERE late > :late""",
        says="it is scheduled, and overdue by {late:duration}",
        remedy="workers queue such jobs each second: start one if none is alive; else a session holds the row locked, "
        "or the server refuses to change it (both are findings of their own)",
        is_cheap=False,
    ),
    Check(
        name="rows set aside",
        about="{name:.100}",
        rows=f"""
            SELECT DISTINCT ON (each.name) each.name, each.value AS reason
            FROM $processes CROSS JOIN LATERAL jsonb_each_text(set_aside) AS each (name, value)
            WHERE each.name <> '{EVENT_LOOP}' ORDER BY each.name""",
        says="{reason:.1000}",
        remedy="fix the cause that it names: the row, a trigger or constraint of yours, or a function that makes "
        "keys; workers try again every minute",
        is_cheap=False,
    ),
    Check(
        name="keys that swallow enqueues",
        about="job {id}",
        rows=f"""
            SELECT id, task, nullif(run_at, 'infinity') AS run_at, coalesce(skipped, 0) AS skipped
            FROM (
              SELECT id, task, run_at, unique_key, -$age(run_at) AS wait
              FROM $jobs WHERE state = 'scheduled' ORDER BY run_at DESC LIMIT {COUNTED}) AS last
            LEFT JOIN (
              SELECT job_id, count(*) AS skipped FROM $ticks WHERE outcome = 'skipped' GROUP BY job_id
            ) AS ticks ON job_id = id
            WHERE unique_key IS NOT NULL AND wait > CASE WHEN skipped > 0 THEN {_AHEAD} ELSE {_FAR_AHEAD} END
            ORDER BY wait DESC LIMIT {_SOME}""",
        says="it waits{run_at:moment| until }, and keeps its unique key meanwhile: an enqueue of {task:.200} with that "
        "key makes no new job; {skipped:plural tick} of schedules skipped for it",
        remedy="sqla-jobs retry {id} runs it now, unless it waits in a step; sqla-jobs cancel {id} frees its key; "
        "sqla-jobs show {id} says what it waits for",
        is_cheap=False,
    ),
    Check(
        name="keys that swallow enqueues",
        about="job {id}",
        rows=f"""
            SELECT id, task, times_replaced AS times, $age(created_at) AS age, nullif(run_at, 'infinity') AS run_at
            FROM (
              SELECT id, task, times_replaced, created_at, run_at, started_at FROM $jobs
              WHERE state = 'scheduled' ORDER BY run_at LIMIT {COUNTED}) AS first
            WHERE times_replaced > 0 AND started_at IS NULL AND $age(created_at) > :put_off
            ORDER BY first.run_at LIMIT {_SOME}""",
        says="{task:.200} was first enqueued {age:duration} ago and has not started: {times:plural enqueue} with its "
        "unique key replaced it and put it off{run_at:moment| until }",
        remedy="give its Unique(on_conflict='replace') a max_delay=; sqla-jobs retry {id} runs it now",
    ),
    Check(
        name="process killers",
        about="job {id}",
        # `statement_timestamp` is stable, so that the index of failed runs ends there
        rows=f"""
            SELECT job.id, task, attempt, max_attempts, max_lost, times
            FROM (
              SELECT job_id, count(*) AS times FROM (
                SELECT job_id, outcome FROM $runs
                WHERE {BAD} AND finished_at > statement_timestamp() - interval '1 day'
                ORDER BY finished_at DESC LIMIT {LOOKED_AT}) AS newest
              WHERE outcome = 'lost' GROUP BY job_id HAVING count(*) > 1) AS lost
            JOIN $jobs AS job ON job.id = lost.job_id
            WHERE state IN ({", ".join(map(repr, map(str, LIVE)))}) ORDER BY times DESC LIMIT {_SOME}""",
        says="{task:.200} has lost its process {times} times since yesterday, at attempt {attempt} of {max_attempts}"
        "{max_lost:|, and it ends after | lost runs in a row}",
        remedy="its runs show how (`sqla-jobs show {id}`); to stop it: sqla-jobs cancel {id}",
    ),
    Check(
        name="unheard cancels",
        about="job {id}",
        rows=f"""
            SELECT job.id, job.task, $age(job.cancel_requested_at) AS age, process.host, process.pid
            FROM $jobs AS job JOIN $processes AS process ON process.id = job.process_id
            WHERE job.state = 'running' AND $age(job.cancel_requested_at) > :cancelled LIMIT {_SOME}""",
        says="{task:.200} still runs, {age:duration} after it was cancelled",
        remedy="code that does not return to Python cannot be interrupted: sqla-jobs cancel {id} --kill; if its worker "
        "has no parent, on {host}: kill -9 {pid}. Give the task a timeout=, or the worker --timeout, after which the "
        "process is killed",
    ),
)
