"""A job with stored steps has begun: an enqueue with its unique key does not give it other arguments."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from sqla_jobs import JobState, Unique
from tests.helpers import wait_until, waiting_for_locks
from tests.step_shop import Approval, calls, charges_and_tells, jobs
from tests.steps.test_sleeps import let_time_pass
from tests.steps.test_steps import drained

REPLACE = Unique("account", on_conflict="replace", max_delay=None)


@pytest.mark.parametrize(
    ("how", "many"),
    [("sleep", False), ("wait", True), ("fail", False)],
)
def test_a_job_with_stored_steps_ends_with_its_own_arguments(session: Session, how: str, many: bool) -> None:
    task = charges_and_tells.options(unique=REPLACE)
    job = task.enqueue(session, account=17, cents=100, how=how)
    drained(session)
    assert (job.state, calls) == ("scheduled", ["charged 100"])
    if many:
        assert task.enqueue_many(session, [{"account": 17, "cents": 999, "how": how}]).inserted == 1
    else:
        assert task.enqueue(session, account=17, cents=999, how=how) is not job
    session.commit()
    new = session.scalars(select(jobs.Job).where(jobs.Job.id != job.id)).one()
    assert (job.args["cents"], job.unique_key, new.args["cents"]) == (100, None, 999)
    assert task.enqueue(session, account=17, cents=1000, how=how) is new
    session.commit()
    for one in (job, new):
        drained(session)
        if how == "wait":
            jobs.signal(session, one, "approved", Approval("ada"))
        let_time_pass(session, one, 100_000)
    drained(session)
    assert sorted(calls) == sorted(["charged 100", "charged 1000", "told of 100", "told of 1000"])


def test_a_step_that_is_stored_while_the_enqueue_waits_for_the_job_counts(database: Engine) -> None:
    task = charges_and_tells.options(unique=REPLACE)
    lease = {"current_run_id": 1, "process_id": "00000000-0000-0000-0000-000000000001", "attempt": 1}
    with Session(database) as one, Session(database) as other, ThreadPoolExecutor() as threads:
        job = task.enqueue(one, account=17, cents=100, how="sleep")
        running = update(jobs.Job).where(jobs.Job.id == job.id)
        one.execute(running.values(state="running", started_at=text("clock_timestamp()"), **lease))
        one.commit()
        one.add(jobs.Step(job_id=job.id, name="rest", kind="sleep", number=1, run_id=1))
        job.state, job.current_run_id, job.process_id = JobState.scheduled, None, None
        one.flush()
        new = threads.submit(task.enqueue, other, account=17, cents=999, how="sleep")
        wait_until(lambda: waiting_for_locks(database))
        one.commit()
        assert new.result(20).id != job.id
        other.commit()
        one.refresh(job)
        assert (job.args["cents"], job.unique_key) == (100, None)
