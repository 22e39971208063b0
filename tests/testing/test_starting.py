"""What limits, pauses and order let start now, asserted without a worker."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sqla_jobs.testing import assert_starts, assert_waits, make_job, startable
from tests.testing.kit_shop import fetch, jobs, paced, send


def test_what_may_start_is_told_in_order_and_does_not_start(kit_session: Session) -> None:
    late = send.options(priority=5).enqueue(kit_session, email="late")
    soon = send.enqueue(kit_session, email="soon")
    mail = send.options(queue="mail").enqueue(kit_session, email="mail")
    send.options(delay=timedelta(hours=1)).enqueue(kit_session, email="later")
    assert startable(kit_session, jobs) == [soon, late, mail]
    assert startable(kit_session, jobs, queues=["mail"]) == [mail]
    assert [soon.state, soon.attempt, mail.state] == ["queued", 0, "queued"]
    assert kit_session.scalar(select(func.count()).select_from(jobs.Process)) == 0
    assert kit_session.scalar(select(func.count()).select_from(jobs.Limit)) == 0


def test_a_concurrency_limit_counts_what_runs_and_what_would(kit_session: Session) -> None:
    one = make_job(kit_session, fetch, state="running", args={"account": 1})
    same = fetch.enqueue(kit_session, account=1)
    first, second = (fetch.enqueue(kit_session, account=2) for _ in range(2))
    assert startable(kit_session, jobs) == [first]
    assert_starts(kit_session, jobs, first)
    assert_waits(kit_session, jobs, same, because=str(one.id))
    assert_waits(kit_session, jobs, second.id)


def test_a_rate_limit_lets_so_many_start(kit_session: Session) -> None:
    made = [paced.enqueue(kit_session, n=n) for n in range(4)]
    assert startable(kit_session, jobs) == made[:2]
    jobs.set_limit(kit_session, paced, rate=3, per=60)
    assert startable(kit_session, jobs) == made[:3]


def test_a_pause_lets_nothing_start(kit_session: Session) -> None:
    job = send.options(queue="mail").enqueue(kit_session, email="a@b.c")
    jobs.pause(kit_session, "mail", reason="the provider is down")
    assert startable(kit_session, jobs) == []
    assert_waits(kit_session, jobs, job, because="the provider is down")


def test_a_failure_says_why(kit_session: Session) -> None:
    make_job(kit_session, fetch, state="running", args={"account": 1})
    waits = fetch.enqueue(kit_session, account=1)
    starts = fetch.enqueue(kit_session, account=2)
    kit_session.flush()
    with pytest.raises(
        AssertionError, match=rf"job {waits.id} does not start now:\n  The limit fetch of key 1 is full"
    ) as raised:
        assert_starts(kit_session, jobs, waits)
    assert "No live worker" not in str(raised.value)
    with pytest.raises(AssertionError, match=f"job {starts.id} starts now, with 0 others"):
        assert_waits(kit_session, jobs, starts)
    with pytest.raises(AssertionError, match=rf"job {waits.id} waits, but not because of 'a pause':\n"):
        assert_waits(kit_session, jobs, waits, because="a pause")
