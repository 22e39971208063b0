"""What is retried, and what waits for it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs.actions.jobs import Erase
from tests import shop
from tests.helpers import states
from tests.shop import jobs
from tests.workflows.resolving import Process, process, state


@pytest.fixture
def one(database: Engine) -> Iterator[Process]:
    with process(database) as one:
        yield one


def mark(session: Session, **options: Any) -> shop.MyJob:
    job = shop.mark.options(**options).enqueue(session, n=1)
    session.flush()
    return job


@pytest.mark.parametrize("outcome", ["fail", "end"])
@pytest.mark.parametrize("others", ["job", "batch"])
def test_a_prerequisite_that_is_retried_is_waited_for_again_whatever_its_place(
    outcome: str, others: str, session: Session, database: Engine, one: Process
) -> None:
    first, batch = mark(session), jobs.batch(session)
    second = mark(session, batch=batch)
    last = mark(session, after=[first, second if others == "job" else batch], if_failed="run")
    session.commit()
    one.claim()
    getattr(one, outcome)(first)
    one.resolve(first)
    assert jobs.retry(session, first)
    session.commit()
    one.end(second)
    one.resolve(second)
    assert state(database, last) == "blocked"
    one.claim()
    one.end(first)
    one.resolve(first)
    assert state(database, last) == "queued"


def test_a_job_that_a_retry_revives_is_waited_for_again(session: Session, database: Engine, one: Process) -> None:
    top, other = mark(session), mark(session)
    middle = mark(session, after=top)
    last = mark(session, after=[middle, other], if_failed="run")
    session.commit()
    one.claim()
    one.fail(top)
    one.resolve(top)
    assert state(database, middle) == "cancelled"
    assert jobs.retry(session, top)
    session.commit()
    one.end(other)
    one.resolve(other)
    assert (state(database, middle), state(database, last)) == ("blocked", "blocked")
    one.succeed_all()
    assert (state(database, middle), state(database, last)) == ("succeeded", "succeeded")


def test_an_erased_dependent_stays_cancelled_and_the_retry_says_so(
    session: Session, database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    bad = shop.flaky.options(max_attempts=1).enqueue(session, good_from=2)
    after, other = mark(session, after=bad), mark(session, after=bad)
    below = mark(session, after=after)
    session.commit()
    jobs.worker(bind=database).drain()
    assert Erase().one(jobs._changing(session, "erase"), after.id)
    session.commit()
    with caplog.at_level("WARNING"):
        assert jobs.retry(session, bad)
    session.commit()
    assert f"job {after.id}" in caplog.text
    assert states(session) == {bad.id: "queued", after.id: "cancelled", other.id: "blocked", below.id: "cancelled"}
