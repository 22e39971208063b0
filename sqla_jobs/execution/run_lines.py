"""Log lines about runs. The names of their fields are stable, and listed in docs/logs-and-errors.md."""

from __future__ import annotations

import logging
from typing import Any

from sqla_jobs.database.shard_name import SHARD
from sqla_jobs.errors import LeaseLost
from sqla_jobs.queries.values import Claimed, Lease, Rescued, read_headers
from sqla_jobs.rules.outcomes import Failure, Outcome, RunOutcome, type_name

log: logging.Logger = logging.getLogger("sqla_jobs.run")
log.setLevel(logging.WARNING)  # by default, a worker that runs 10,000 jobs a second must not log 10,000 lines a second


def log_end(run: Lease | Claimed, outcome: Outcome, seconds: float) -> None:
    """Log the end of an attempt: INFO if it succeeded or snoozed, ERROR if it failed, otherwise WARNING.

    A retry that the task asked for is logged at INFO. Three more kinds of attempts get a WARNING: one that has lost its
    lease, and one that was put back because another transaction held the job's row, or a row of its arguments is
    missing. ERROR lines include the traceback, unless the task raised `Retry`. Other lines include it only if the log
    level is DEBUG.
    """
    level, failure = _level_of(outcome), outcome.failure
    if log.isEnabledFor(level):
        again = "" if outcome.delay is None else f", again in {outcome.delay:.1f} s"
        _log(level, run, outcome.kind, f" after {seconds:.3f} s{again}", failure)


def _level_of(outcome: Outcome) -> int:
    level, failure = _LEVELS.get(outcome.kind, logging.WARNING), outcome.failure
    if failure is None:
        return level
    if failure.is_expected:
        return logging.INFO if outcome.kind == RunOutcome.retried else level
    return logging.WARNING if level == logging.INFO or failure.type == _LEASE_LOST else level


def log_rescued(job: Rescued) -> None:
    """Log that a job was rescued from a dead process: ERROR if it failed, otherwise WARNING."""
    level = logging.ERROR if job.state == "failed" else logging.WARNING
    lost = Failure("Lost", f"process {job.process_id} stopped before the job ended")
    _log(level, job, RunOutcome.lost, f" and is {job.state} now", lost)


def _log(level: int, run: Lease | Claimed | Rescued, outcome: str, more: str, failure: Failure | None) -> None:
    is_expected = failure is not None and failure.is_expected
    is_full = (level == logging.ERROR and not is_expected) or log.isEnabledFor(logging.DEBUG)
    traceback = failure.traceback if failure is not None and is_full else None
    log.log(
        level,
        "job %s %s attempt %s/%s %s%s%s%s",
        run.job_id,
        run.task or "of an unknown task",
        run.attempt or "?",
        run.max_attempts or "?",
        outcome,
        more,
        "" if failure is None else f": {failure.type}: {failure.message:.500}",
        f"\n{traceback}" if traceback else "",
        extra=run_fields(run, outcome, error_type=None if failure is None else failure.type, traceback=traceback),
    )


def run_fields(
    run: Lease | Claimed | Rescued, outcome: str, *, error_type: str | None = None, traceback: str | None = None
) -> dict[str, Any]:
    """Return the fields of a log line about a run. Unknown values are left out."""
    fields = {
        "job_id": run.job_id,
        "task": run.task or None,
        "queue": run.queue or None,
        "attempt": run.attempt or None,
        "outcome": str(outcome),
        "run_id": run.run_id,
        "worker": str(run.process_id),
        "shard": SHARD.get() or None,
        "headers": read_headers(run.headers) or None,
        "error_type": error_type,
        "traceback": traceback,
    }
    return {name: value for name, value in fields.items() if value is not None}


_LEASE_LOST = type_name(LeaseLost)
_LEVELS: dict[str, int] = {
    RunOutcome.succeeded: logging.INFO,
    RunOutcome.snoozed: logging.INFO,
    RunOutcome.failed: logging.ERROR,
}
