"""Pieces of SQL that several statements share.

In a statement, `$has_place` stands for `HAS_PLACE`. In a piece, `j` is a job, `r` a run, `e` the end of an attempt or
the progress of one, `m` a job that loses its lease, and `d` a job that has lost it.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqla_jobs.database.subscribers import LIMITS
from sqla_jobs.models.types import ENDED, MAX_ATTEMPTS, NOT_RUNNING
from sqla_jobs.rules.limits import MOST_GATES
from sqla_jobs.rules.value_checks import MAX_ID

_COMMENTS = re.compile(r"^\s*(--.*\n\s*)*", re.MULTILINE)


def read(name: str) -> str:
    """Return the SQL in the file `name.sql` of this package, without comments and indentation."""
    return _COMMENTS.sub("", Path(__file__).with_name(f"{name}.sql").read_text(encoding="utf-8"))


IS_RUNNING = "j.state IS NOT DISTINCT FROM 'running'"
"""The job is running. No index serves this form: the server looks the job up by its id.

While a snapshot is held, the index of running jobs keeps an entry for each job that has run since.
"""

IS_ORPHANED = "j.state = 'running' AND j.process_id NOT IN (SELECT p.id FROM $processes p)"
"""The job is running, and its process has no row."""

END_HAS_LEASE = """j.id = e.job_id AND j.current_run_id = e.run_id AND j.process_id = e.process_id AND $is_running"""
"""The lease of `e` is still valid."""

HAS_LEASE = """j.id = CAST(:lease_job_id AS bigint) AND j.current_run_id = CAST(:lease_run_id AS bigint)
AND j.process_id = CAST(:lease_process_id AS uuid) AND $is_running"""
"""The lease in the parameters is still valid."""

IS_AMONG = """j.id <> ALL (CAST(:set_aside_ids AS bigint[]))
AND (CAST(:only_ids AS bigint[]) IS NULL OR j.id = ANY (CAST(:only_ids AS bigint[])))"""
"""The parameters of an `Among` include the job."""

COMMITTED_TO_DISK = (
    "CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) "
    "ELSE '' END IS NOT NULL"
)
"""True, and makes COMMIT wait for the disk, even if it does not by default.

A server crash can undo an asynchronous commit, and with it the numbers that a sequence has handed out.
"""

TAKES_TURN = "pg_try_advisory_xact_lock($lock_key(order))"
"""Tries to take the lock for giving positions to waiting jobs of ordered keys.

Only its holder queues such jobs, so that they become visible in the order of their positions. A process that fails to
take the lock looks again soon: the holder may not see all jobs that this process sees.
"""

OF_THIS_JOB = "(j.times_replaced IS NULL OR r.finished_at >= j.created_at)"
"""The run counts among the job's attempts. The runs of the job that it replaced do not."""

FREE_RUN_ID = f"""CASE WHEN m.run_id > 0 AND m.run_id <= {MAX_ID}
AND (SELECT r.id FROM $runs r WHERE r.id = m.run_id) IS NULL THEN m.run_id ELSE nextval('$run_ids') END"""
"""A lease's run id, or a new id if the lease's id is invalid or belongs to a stored run."""

_NOT_RUNNING, _ENDED = (str((*map(str, states),)) for states in (NOT_RUNNING, ENDED))

LOSES_LEASE = f"""state = m.state, current_run_id = NULL, process_id = NULL,
position = CASE WHEN m.state = 'queued' THEN nextval('$positions') ELSE j.position END,
run_at = CASE WHEN m.state = 'scheduled' THEN m.due_at ELSE j.run_at END,
finished_at = CASE WHEN m.state IN {_ENDED} THEN m.finished_at END"""
"""The columns of a job that stops running and enters the new state of `m`."""

LOSSES = "(SELECT count(*) FROM $runs r WHERE r.job_id = j.id AND r.outcome = 'lost' AND $of_this_job)"
"""The number of times that the job has lost its process."""


def losses_in_a_row(job: str) -> str:
    """Return the number of lost runs of a job since its last other outcome, and since it was last retried by hand.

    A job that goes on after a loss has got the attempt back, so its next run has the same number. A retry by hand goes
    on to the next number, so the losses before it do not count.
    """
    # + 0: without it the planner may walk the index of ids backwards, past the runs of all other jobs
    return f"""(SELECT count(*) FROM $runs r
WHERE r.job_id = {job}.id AND r.outcome = 'lost' AND {OF_THIS_JOB.replace("j.", f"{job}.")}
AND r.id > coalesce((SELECT max(o.id + 0) FROM $runs o WHERE o.job_id = {job}.id AND o.outcome <> 'lost'), 0)
AND r.attempt >= {job}.attempt + CASE WHEN {job}.state IN {_NOT_RUNNING} THEN 1 ELSE 0 END)"""


LOSS_BACKOFF = "least(power(CAST(2 AS float8), least($losses - 1, 20)), 3600) * (0.75 + random() / 2)"
"""The wait in seconds after the third loss and each later one. The wait grows like `retry.BACKOFF`."""

STATE_AFTER_LOSS = f"""CASE WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled'
WHEN CASE WHEN j.max_lost IS NULL THEN j.attempt >= j.max_attempts
  ELSE {losses_in_a_row("j")} + 1 >= j.max_lost END THEN 'failed'
WHEN $losses < 2 THEN 'queued' ELSE 'scheduled' END"""
"""The next state of a job that has lost its process. A cancel request rules out another attempt.

The runs since the last other outcome are read only for a job that counts its losses apart.
"""

GETS_ATTEMPT_BACK = f"j.max_lost IS NOT NULL AND m.state IN {_NOT_RUNNING}"
"""The lost job `j`, whose next state is that of `m`, gets its attempt back.

A job that ends keeps it. So if it is retried by hand, its next run has another number, and its losses count anew.
"""

MESSAGE = f"concat(d.queue, CASE WHEN d.gates IS NOT NULL THEN '{LIMITS}' END)"
"""The message about a queued job: its queue's name, marked if the job waits behind limits."""

LIMITS_MESSAGE = f"'{LIMITS}'"
"""The message that jobs behind limits may start."""

LIMITED_QUEUES = """
  SELECT substr(l.gate, 2) FROM $limits l WHERE l.gate >= '@' AND l.gate < 'A' AND l.running IS NOT NULL"""
"""A query for the names of the queues that have a limit of their own."""

LIMITED_TASKS = "SELECT unnest(l.tasks) FROM $limits l WHERE $is_in_effect"
"""A query for the names of the tasks that any row of limits names."""

HAS_PLACE = "(d.gates IS NOT NULL OR d.queue = ANY (ARRAY($limited_queues)))"
"""The job has gates or is in a limited queue, and so frees a place when it stops running."""


def _told(others: int) -> str:
    return f"""(SELECT count(pg_notify($channel, message.text)) FROM message
WHERE (SELECT count(*) FROM $processes p WHERE p.kind = 'worker') > {others}) >= 0"""


WORKERS_ARE_TOLD = _told(0)
"""True, and sends each `text` of the CTE `message` to workers, if there are any.

A text is the name of a queue, or empty for any queue. `LIMITS` may be appended.
"""

OTHERS_ARE_TOLD = _told(1)
"""The same if there are other workers than this one."""

FOLLOW_UPS = read("follow_ups")
"""The job of `on_failure` for each job of the CTE `done` that has failed for good, as the body of a CTE."""

MOST_GATES_OF_A_JOB, DEFAULT_ATTEMPTS = str(MOST_GATES), str(MAX_ATTEMPTS)
