"""Checks of queues, tasks, processes and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqla_jobs.monitoring.check import LOOKED_AT, Check, Look, Rows
from sqla_jobs.monitoring.queues import COUNTED
from sqla_jobs.rules.outcomes import KEY_MISSING, MISFIT
from sqla_jobs.rules.wording import near_names
from sqla_jobs.runtime.set_aside import EVENT_LOOP

_LIVE = "SELECT queues, tasks FROM $processes AS process WHERE kind = 'worker' AND $alive(process)"
_QUEUES = f"""
    WITH live AS ({_LIVE})
    SELECT each.name, waiting.number, paused.paused_at, paused.paused_until, paused.pause_reason,
      $paused_by('queue ' || each.name) AS paused_by,
      ARRAY(SELECT DISTINCT jsonb_object_keys(queues) FROM live) AS served, EXISTS (SELECT FROM live) AS is_any
    FROM unnest(CAST(:queues AS text[])) AS each (name)
    CROSS JOIN LATERAL (
      SELECT count(*) AS number FROM (
        SELECT FROM $jobs WHERE state = 'queued' AND queue = each.name LIMIT {COUNTED}) AS some_jobs) AS waiting
    LEFT JOIN $queues AS paused ON paused.name = each.name AND $is_paused(paused)
    ORDER BY each.name"""
"""The queues with waiting jobs. For `why`, the queue of the job."""
_UNCLAIMED = f"""
    WITH live AS ({_LIVE}), counted AS (
      SELECT queue, task, count(*) AS number, min(id) AS id FROM $heads AS head GROUP BY queue, task
    ), known AS (
      SELECT counted.*, coalesce(CAST(:own_names AS jsonb) ->> task, task) AS own,
        task = ANY(CAST(:known AS text[])) AS is_declared,
        EXISTS (SELECT FROM live WHERE queues ? queue) AND NOT EXISTS (
          SELECT FROM live
          WHERE queues ? queue AND (jsonb_typeof(tasks) IS DISTINCT FROM 'object' OR tasks ? task)) AS is_unknown
      FROM counted
    )
    SELECT task, own, is_declared, bool_or(is_unknown) AS is_unknown, min(queue) AS queue, min(id) AS id,
      CAST(sum(number) AS bigint) AS number, paused_at, paused_until, pause_reason,
      $paused_by('task ' || own) AS paused_by
    FROM known LEFT JOIN $paused_tasks AS paused ON paused.name = task AND $is_paused(paused)
    WHERE paused_at IS NOT NULL OR is_unknown OR NOT is_declared
    GROUP BY task, own, is_declared, paused_at, paused_until, pause_reason ORDER BY task"""
"""The tasks of the first waiting jobs that are paused, undeclared, or unknown to all live workers of the queue."""
_PAUSED = (
    "it is paused since {paused_at:moment}{paused_by:| by }{paused_until:moment| until }{pause_reason:.200| (|)}, with "
)


def _unserved_queues(look: Look) -> Rows:
    for row in look.rows(_QUEUES):
        is_told = look.is_of_job or (row["is_any"] and row["paused_at"] is None)
        if is_told and row["name"] not in row["served"]:
            near = near_names(row["name"], row["served"])
            yield {**row, "near": near[0] if near else "QUEUE"}


def _unclaimed(is_meant: Callable[[Any], bool]) -> Callable[[Look], Rows]:
    """Find tasks of which `is_meant` holds. `doctor` leaves out those that are paused."""

    def rows(look: Look) -> Rows:
        return (row for row in look.rows(_UNCLAIMED) if is_meant(row) and (look.is_of_job or row["paused_at"] is None))

    return rows


_CLOCKS = """
    SELECT * FROM (
      SELECT count(*) AS enabled, nullif(greatest($age(min(next_run_at)), 0), 0) AS late, (
        SELECT count(*) FROM $processes AS process WHERE kind = 'clock' AND $alive(process)) AS clocks
      FROM $schedules WHERE enabled) AS schedules
    WHERE enabled > 0 AND (clocks = 0 OR late > :late)"""

WORK = (
    Check(
        name="unclaimed tasks",
        about="task {task:.200}",
        rows=_unclaimed(lambda row: not row["is_declared"]),
        says=f"this application does not declare it, and {{number:they_are job/{LOOKED_AT}}} waiting for it"
        "{task:did_you_mean}",
        remedy="deploy the code that declares it; or add its name to aliases=[…] of the task that replaces it, if that "
        "takes the same arguments, and else declare a task with the old name that calls the new one; or cancel its "
        "jobs: sqla-jobs cancel --task {task:.200}",
        is_of_job=True,
    ),
    Check(
        name="paused tasks",
        about="task {task:.200}",
        rows=lambda look: (row for row in look.rows(_UNCLAIMED) if row["paused_at"] is not None),
        says=_PAUSED + f"{{number:plural job/{LOOKED_AT}}} waiting",
        remedy="`sqla-jobs resume --task {own:.200}` resumes it",
        is_of_job=True,
    ),
    Check(
        name="paused queues",
        about="queue {name}",
        rows=lambda look: (row for row in look.rows(_QUEUES) if row["paused_at"] is not None),
        says=_PAUSED + f"{{number:plural job/{COUNTED}}} waiting",
        remedy="`sqla-jobs resume {name}` resumes it",
        is_of_job=True,
    ),
    Check(
        name="workers",
        rows=f"""
            SELECT CAST(nullif(sum(number), 0) AS bigint) AS number,
              nullif(string_agg(name, ',' ORDER BY name), 'default') AS served
            FROM (
              SELECT name, number FROM ({_QUEUES}) AS waiting
              UNION ALL SELECT 'default', 0 WHERE 'default' <> ALL(CAST(:queues AS text[]))) AS each
            HAVING NOT EXISTS ({_LIVE})""",
        says="none is alive{number:they_are job|, and | waiting}",
        remedy="start one: python -m sqla_jobs.worker MODULE:ATTR{served:quote| --queues }; if one runs, its log shows "
        "why its processes end",
    ),
    Check(
        name="queues without a worker",
        about="queue {name}",
        rows=_unserved_queues,
        says=f"no live worker serves it, and {{number:they_are job/{COUNTED}}} waiting",
        remedy="start a worker with --queues {name}; or move its jobs to a queue that is served: "
        "sqla-jobs change --queue {name} --to {near}",
        is_of_job=True,
    ),
    Check(
        name="unclaimed tasks",
        about="task {task:.200}",
        rows=_unclaimed(lambda row: row["is_declared"] and row["is_unknown"]),
        says=f"no live worker of its queue knows it, and {{number:they_are job/{LOOKED_AT}}} waiting for it",
        remedy="start workers with the code that declares it: the live ones are older, or of another application",
        is_of_job=True,
    ),
    Check(
        name="stalled processes",
        about="process {pid} of {host}",
        rows="""
            SELECT pid, host, $age(stalled_since) AS age, (
              SELECT count(*) FROM $jobs WHERE state = 'running' AND process_id = process.id) AS number
            FROM $processes AS process WHERE $alive(process) AND stalled_since IS NOT NULL""",
        says="it has made no progress for {age:duration}, and it holds {number:plural job}",
        remedy="it was stopped, or C code holds its interpreter: `py-spy dump --native --pid {pid}` on its host "
        "shows where; its worker kills it after --hung-after, `kill -KILL {pid}` kills it now",
    ),
    Check(
        name="event loops",
        about="event loop of process {pid} of {host}",
        rows=f"""
            SELECT pid, host, reason, coalesce(substring(reason FROM '^job ([0-9]+)'), 'ID') AS id
            FROM $processes AS process CROSS JOIN LATERAL (SELECT set_aside ->> '{EVENT_LOOP}') AS loop (reason)
            WHERE $alive(process) AND reason IS NOT NULL""",
        says="{reason:.1000}: no other coroutine runs there",
        remedy="a coroutine must not block: call blocking code by await asyncio.to_thread(…); to end that job now: "
        "sqla-jobs cancel {id} --kill",
    ),
    Check(
        name="arguments that do not fit",
        about="task {task:.200}",
        rows=f"""
            SELECT job.task, count(*) AS number, min(job.id) AS id, (array_agg(run.error ORDER BY job.id))[1] AS reason
            FROM (
              SELECT id, task FROM $jobs WHERE state = 'scheduled'
              ORDER BY run_at LIMIT {LOOKED_AT}) AS job
            CROSS JOIN LATERAL (
              SELECT outcome, error_type, error FROM $runs WHERE job_id = job.id ORDER BY id DESC LIMIT 1) AS run
            WHERE run.outcome = 'snoozed' AND run.error_type IN ('{MISFIT}', '{KEY_MISSING}')
            GROUP BY job.task ORDER BY job.task""",
        says=f"a worker lacks the code or the key for {{number:plural job/{LOOKED_AT}}}, such as job {{id}}: "
        "{reason:.500}",
        remedy="sqla-jobs show {id} shows which worker takes it; start workers with the code and keys that fit it, or "
        "give new parameters of the task a default. Where arguments do not fit, the attempt fails after a minute",
    ),
    Check(
        name="clocks",
        about="schedules",
        rows=_CLOCKS,
        says="{enabled:they_are schedule} enabled, with {clocks:plural live clock}"
        "{late:duration|, and the first is overdue by }",
        remedy="start a clock: python -m sqla_jobs.clock MODULE:ATTR, or a worker without --no-clock; or read the log "
        "of the one that is alive",
    ),
    Check(
        name="schedules of undeclared tasks",
        about="schedule {name:.200}",
        rows="""
            SELECT name, left(name, 200) AS cut, task, nullif(next_run_at, 'infinity') AS next_at FROM $schedules
            WHERE enabled AND task <> ALL(CAST(:known AS text[])) ORDER BY name LIMIT 20""",
        says="it enqueues jobs of task {task:.200}{next_at:moment|, next at }, which this application does not declare"
        "{task:did_you_mean}",
        remedy="deploy the code that declares the task; or disable it: sqla-jobs schedule set {cut:quote} --disable",
    ),
    Check(
        name="workers",
        about="jobs of vanished processes",
        rows="""
            SELECT count(*) AS number FROM $jobs
            WHERE state = 'running'
              AND process_id NOT IN (SELECT id FROM $processes AS process WHERE $alive(process))""",
        when=lambda row: row["number"] > 0,
        says="{number:plural job}",
        remedy="a worker rescues them within its lease; start one if none runs",
        is_cheap=False,
    ),
)
