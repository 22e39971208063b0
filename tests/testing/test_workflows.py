"""Jobs after jobs, and batches, in the test kit."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError
from sqla_jobs.testing import assert_enqueued, assert_not_enqueued, enqueued, make_batch, make_job
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


def test_a_job_is_made_after_others_and_in_a_batch(kit_session: Session) -> None:
    done, live = make_job(kit_session, send, state="succeeded"), make_job(kit_session, send)
    batch = jobs.batch(kit_session)
    blocked = make_job(kit_session, send, after=[done, live], batch=batch)
    assert (blocked.state, blocked.waits_for, blocked.batch_id) == ("blocked", live.id, batch.id)
    assert make_job(kit_session, send, after=done).state == "queued"
    failed = make_job(kit_session, send, state="failed")
    assert make_job(kit_session, send, after=failed).state == "blocked", "a worker cancels it"
    cancelled = make_job(kit_session, send, state="cancelled", after=failed)
    assert f"job {failed.id}" in jobs.why(kit_session, cancelled)[0]
    held = make_job(kit_session, send, after=failed, if_failed="hold")
    assert f"job {failed.id}" in jobs.why(kit_session, held)[0]
    ended = make_job(kit_session, send, state="succeeded", after=live)
    assert ended.waits_for is None
    assert_enqueued(kit_session, send.options(after=[live, done], batch=batch))
    with pytest.raises(ArgumentsError, match="after"):
        make_job(kit_session, send, after=7)  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match="after="):
        make_job(kit_session, send, if_failed="run")


def test_a_batch_is_made_with_jobs_in_any_state(kit_session: Session) -> None:
    batch = make_batch(kit_session, send, name="import", states={"succeeded": 2, "failed": 1, "queued": 1})
    counts = jobs.counts(kit_session, batch)
    assert (counts.succeeded, counts.failed, counts.queued, counts.total) == (2, 1, 1, 4)
    report = make_job(kit_session, jobs, after=batch, if_failed="run", task="send", args={"email": "a@b.c"})
    assert report.state == "blocked"
    assert make_batch(kit_session, jobs).name == ""
    with pytest.raises(ArgumentsError, match="-1"):
        make_batch(kit_session, send, states={"queued": -1})
