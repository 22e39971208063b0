"""Factories of jobs and runs in every state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs.testing import make_job
from tests.testing.kit_shop import Order, ShopJob, call_the_bank, fetch, jobs, send, settle, sync

RUNS = {
    "blocked": [],
    "scheduled": [],
    "queued": [],
    "running": ["retried", "retried"],
    "succeeded": ["retried", "retried", "succeeded"],
    "failed": ["retried", "retried", "failed"],
    "cancelled": [],
}


@pytest.mark.parametrize("state", JobState)
def test_a_job_of_each_state_has_its_runs_and_times(kit_session: Session, state: JobState) -> None:
    attempt = 3 if RUNS[state] else None
    job = make_job(kit_session, send, state=state, args={"email": "a@b.c"}, attempt=attempt, tenant="acme")
    assert type(job) is ShopJob
    assert (job.state, job.task, job.args, job.tenant) == (state, "send", {"email": "a@b.c"}, "acme")
    assert [str(run.outcome) for run in job.runs] == RUNS[state]
    assert (job.finished_at is not None) == (state in ("succeeded", "failed", "cancelled"))
    assert (job.started_at is not None) == bool(attempt)
    assert (job.process_id is None) == (job.current_run_id is None) == (state != "running")
    assert (job.run_at > datetime.now(UTC) + timedelta(minutes=50)) == (state == "scheduled")
    moments = [job.created_at, *(at for run in job.runs for at in (run.started_at, run.finished_at))]
    assert all(earlier <= later for earlier, later in pairwise(moments))
    if state in ("succeeded", "failed"):
        assert (job.runs[-1].started_at, job.runs[-1].finished_at) == (job.started_at, job.finished_at)
    if state == "running":
        assert kit_session.get_one(jobs.Process, job.process_id).kind == "worker"


def test_errors_and_results_are_those_of_the_runs(kit_session: Session) -> None:
    failed = make_job(kit_session, call_the_bank, state="failed", attempt=2, error=ConnectionError("busy"))
    assert [(run.error_type, run.error) for run in failed.runs] == [("ConnectionError", "busy")] * 2
    done = make_job(kit_session, send, state=JobState.succeeded, result={"sent": 1})
    assert done.runs[0].result == {"sent": 1}
    waits = make_job(kit_session, call_the_bank, state="scheduled", attempt=1)
    assert (waits.runs[0].outcome, waits.runs[0].error) == ("retried", "it went wrong")
    given_up = make_job(kit_session, send, state="cancelled", attempt=1)
    assert given_up.runs[0].error_type == "Cancel"


def test_columns_that_are_given_win(kit_session: Session) -> None:
    ended = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    job = make_job(kit_session, send.options(queue="mail"), state="failed", finished_at=ended, priority=-3)
    assert (job.queue, job.priority, job.finished_at, job.runs[0].finished_at) == ("mail", -3, ended, ended)
    assert make_job(kit_session, send, state="failed", attempt=30).max_attempts == 30


def test_a_job_has_the_gates_and_the_key_of_its_task(kit_session: Session) -> None:
    enqueued = fetch.enqueue(kit_session, account=7)
    assert make_job(kit_session, fetch, state="running", args={"account": 7}).gates == enqueued.gates
    one = make_job(kit_session, sync, args={"account": 7})
    assert sync.enqueue(kit_session, account=7) is one
    kit_session.add(order := Order())
    assert make_job(kit_session, settle, args={"order": order}).args == {"order": order.id}
