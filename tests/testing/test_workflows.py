"""Jobs after jobs, and batches, in the test kit."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError
from sqla_jobs.testing import assert_enqueued, assert_not_enqueued, drain, enqueued, make_batch, make_job
from tests.testing.kit_shop import jobs, send


def test_a_job_is_found_by_what_it_was_enqueued_after(kit_session: Session) -> None:
    one, two = (send.enqueue(kit_session, email=email) for email in ("a@b.c", "b@b.c"))
    batch = jobs.batch(kit_session, name="import 17")
    first = send.options(after=one).enqueue(kit_session, email="c@b.c")
    last = send.options(after=[one, two, batch], if_failed="run").enqueue(kit_session, email="d@b.c")
    member = send.options(batch=batch).enqueue(kit_session, email="e@b.c")
    assert assert_enqueued(kit_session, send.options(after=one)) is first
    assert assert_enqueued(kit_session, send.options(after=[batch, two, one]), email="d@b.c") is last
    assert_not_enqueued(kit_session, send.options(after=[one, two]))
    assert_not_enqueued(kit_session, send.options(after=[one, two, batch], if_failed="hold"))
    assert enqueued(kit_session, send.options(batch=batch)) == [member]


def test_a_failure_shows_the_nearest_jobs_with_what_they_are_after(kit_session: Session) -> None:
    one, two = (send.enqueue(kit_session, email=email) for email in ("a@b.c", "b@b.c"))
    batch = jobs.batch(kit_session, name="import 17")
    send.options(after=one).enqueue(kit_session, email="c@b.c")
    with pytest.raises(AssertionError) as raised:
        assert_enqueued(kit_session, send.options(after=[two, batch], batch=batch), email="c@b.c")
    said = str(raised.value)
    assert (
        f'after=["batch {batch.id} (import 17)", "job {two.id} (send)"], batch="batch {batch.id} (import 17)"' in said
    )
    assert f'-     "job {two.id} (send)"' in said
    assert f'+     "job {one.id} (send)"' in said
    assert '+   "batch": null' in said


def test_a_job_is_made_after_others_and_in_a_batch(kit_session: Session) -> None:
    done, live = make_job(kit_session, send, state="succeeded"), make_job(kit_session, send)
    batch = jobs.batch(kit_session)
    blocked = make_job(kit_session, send, after=[done, live], batch=batch)
    assert (blocked.state, blocked.waits_for, blocked.batch_id) == ("blocked", live.id, batch.id)
    assert make_job(kit_session, send, after=done).state == "queued"
    failed = make_job(kit_session, send, state="failed")
    assert make_job(kit_session, send, after=failed).state == "blocked", "a worker cancels it"
    cancelled = make_job(kit_session, send, state="cancelled", after=failed)
    assert f"because job {failed.id} (send) failed" in jobs.why(kit_session, cancelled)[0]
    held = make_job(kit_session, send, after=failed, if_failed="hold")
    assert jobs.why(kit_session, held)[0].startswith(f"It is held: job {failed.id} (send) failed.")
    ended = make_job(kit_session, send, state="succeeded", after=live)
    assert ended.waits_for is None
    assert_enqueued(kit_session, send.options(after=[live, done], batch=batch))
    with pytest.raises(ArgumentsError, match="after takes jobs and batches"):
        make_job(kit_session, send, after=7)  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match="needs after="):
        make_job(kit_session, send, if_failed="run")


def test_a_batch_is_made_with_jobs_in_any_state(kit_session: Session) -> None:
    batch = make_batch(kit_session, send, name="import", states={"succeeded": 2, "failed": 1, "queued": 1})
    counts = jobs.counts(kit_session, batch)
    assert (counts.succeeded, counts.failed, counts.queued, counts.total) == (2, 1, 1, 4)
    report = make_job(kit_session, jobs, after=batch, if_failed="run", task="send", args={"email": "a@b.c"})
    assert report.state == "blocked"
    assert make_batch(kit_session, jobs).name == ""
    with pytest.raises(ArgumentsError, match="must be an integer"):
        make_batch(kit_session, send, states={"queued": -1})


def test_what_was_made_drains_in_order(kit_session: Session) -> None:
    batch = make_batch(kit_session, send, states={"queued": 2}, args={"email": "a@b.c"})
    report = make_job(kit_session, send, after=batch, args={"email": "b@b.c"})
    drain(jobs, kit_session)
    kit_session.refresh(report)
    assert report.state == "succeeded"
