"""What can happen between two statements of a resolver: one test for each way in which a job might wait for ever.

No test has a look at all blocked jobs where ends alone must do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqla_jobs import ArgumentsError, JobMixin, JobState
from sqla_jobs.actions.jobs import Delete
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.queries.resolve import MOST
from tests import shop
from tests.helpers import states
from tests.limits.claims import beside
from tests.shop import jobs
from tests.workflows.resolving import Process, RowWaiters, process, state

pytestmark = pytest.mark.slow


@pytest.fixture
def one(database: Engine) -> Iterator[Process]:
    with process(database) as one:
        yield one


@pytest.fixture
def two(database: Engine) -> Iterator[Process]:
    with process(database) as two:
        yield two


@pytest.fixture
def other(database: Engine) -> Iterator[Session]:
    """A session of somebody else."""
    with Session(database) as other:
        yield other


def mark(session: Session, n: int = 1, **options: Any) -> shop.MyJob:
    return shop.mark.options(**options).enqueue(session, n=n)


def pair(session: Session, **options: Any) -> tuple[JobMixin, JobMixin, JobMixin]:
    """Two jobs, and one after both."""
    first, second = mark(session), mark(session)
    session.flush()
    last = mark(session, after=[first, second], **options)
    session.commit()
    for job in (first, second, last):
        session.refresh(job)
    return first, second, last


# --- two ends at once


@pytest.mark.parametrize(
    ("place", "order"),
    [
        *((place, "as watched") for place in ("lock_watchers", "settle", "lock_watchers 2")),
        ("settle", "the other way round"),
    ],
)
def test_the_later_of_two_last_ends_is_seen(
    place: str, order: str, session: Session, database: Engine, one: Process, two: Process
) -> None:
    first, second, last = pair(session)
    if order != "as watched":
        first, second = second, first
    one.claim()
    one.end(first)

    def meanwhile() -> None:
        two.running.update(one.running)
        two.end(second)
        two.resolve(second)

    is_watched = order == "as watched" or place == "lock_watchers"
    one.resolve(first, before={place: meanwhile} if is_watched else {})
    if not is_watched:
        meanwhile()
    two.again()
    assert state(database, last) == "queued"


def test_what_somebody_else_resolves_is_left_to_them_only_while_they_do(
    session: Session, database: Engine, one: Process, two: Process, other: Session
) -> None:
    """The other resolver may have looked before the end, or may be killed before its commit."""
    first, second, last = pair(session)
    one.claim()
    one.end(first, second)
    with two.claims.engine.execution_options(isolation_level="READ COMMITTED").connect() as connection:
        watchers = two.claims.queries.lock_watchers(connection, [first.id])
        assert watchers.ids == [last.id]
        one.resolve(first, second)
        assert state(database, last) == "blocked"
        connection.rollback()
    one.again()
    assert state(database, last) == "queued"


def test_a_locked_job_holds_up_no_other(session: Session, database: Engine, one: Process, other: Session) -> None:
    first, second = mark(session), mark(session)
    session.flush()
    held, free = mark(session, after=first), mark(session, after=second)
    session.commit()
    one.claim()
    other.execute(text("SELECT FROM sqla_jobs WHERE id = :id FOR UPDATE"), {"id": held.id})
    one.end(first, second)
    with beside(lambda: one.resolve(first, second)) as resolving:
        try:
            resolving.result(5.0)
            assert (state(database, held), state(database, free)) == ("blocked", "queued")
            assert {*one.resolver._ended} == {first.id}, "the other end is over, however long the lock is held"
        finally:
            other.rollback()
    one.again()
    assert state(database, held) == "queued"


@pytest.mark.parametrize("reason", ["a batch that is being filled", "a failed job that is being retried"])
def test_many_jobs_that_are_resolved_later_hold_up_no_other(
    reason: str, session: Session, database: Engine, one: Process, other: Session
) -> None:
    """More of them than one transaction resolves."""
    batch = jobs.batch(session)
    first, second = mark(session, batch=batch), mark(session)
    session.commit()
    one.claim()
    if reason == "a batch that is being filled":
        mark(other, batch=other.merge(batch, load=False))
        other.flush()
        one.end(first)
    else:
        one.fail(first)
        assert jobs.retry(other, first.id)
    shop.mark.options(after=batch).enqueue_many(session, ({"n": n} for n in range(MOST + 1)))
    last = mark(session, after=second)
    session.commit()
    one.end(second)
    one.look()
    one.again()
    assert state(database, last) == "queued"
    other.rollback()
    one.look()
    assert "blocked" not in states(session).values()


@pytest.mark.parametrize("place", ["lock_watchers", "settle", "lock_watchers 2"])
def test_an_error_between_two_statements_loses_no_end(
    place: str, session: Session, database: Engine, one: Process
) -> None:
    first, second, last = pair(session)
    below = mark(session, after=last)
    session.commit()
    one.claim()
    one.end(first)

    def fail() -> None:
        one.fail(second)
        raise OperationalError("", None, Exception("the connection is lost"))

    one.resolver._ended.append(first.id)
    one.statements.expect({place: fail})
    with suppress(OperationalError):
        one.resolver.step()
    assert one.statements.left == []
    one.resolver.step()
    assert (state(database, last), state(database, below)) == ("cancelled", "cancelled")


# --- an enqueue beside an end


@pytest.mark.parametrize(("level", "outcome"), [("REPEATABLE READ", "end"), ("READ COMMITTED", "fail")])
def test_an_end_beside_an_enqueue_is_found_after_its_commit(
    level: str, outcome: str, session: Session, database: Engine, one: Process
) -> None:
    """The resolver cannot see the new job, and the enqueue saw the job before it at work."""
    first = mark(session)
    session.commit()
    one.claim()
    with Session(database.execution_options(isolation_level=level)) as enqueuing:
        before = enqueuing.get_one(jobs.Job, first.id)
        last = mark(enqueuing, after=before)
        assert last.state is JobState.blocked
        getattr(one, outcome)(first)
        one.resolve(first)
        enqueuing.commit()
        last_id = last.id
    one.look()
    assert state(database, last_id) == {"end": "queued", "fail": "cancelled"}[outcome]


def test_a_retry_beside_an_enqueue_after_a_failed_job(
    session: Session, database: Engine, one: Process, other: Session
) -> None:
    """The retry cannot see the new job, and the enqueue saw the failure."""
    first = mark(session)
    session.commit()
    one.claim()
    one.fail(first)
    last = mark(session, after=first)
    assert jobs.retry(other, first.id)
    other.commit()
    session.commit()
    one.look()
    assert state(database, last) == "blocked"
    one.succeed_all()
    assert state(database, last) == "succeeded"


@pytest.mark.parametrize(
    ("after", "ends"),
    [
        ("the failed job", "commit"),
        ("the failed job", "rollback"),
        ("a job that the failure cancelled", "commit"),
        ("the batch of the failed job", "commit"),
    ],
)
def test_a_resolve_of_a_new_job_beside_a_retry_that_cannot_see_it(
    after: str, ends: str, session: Session, database: Engine, one: Process, other: Session
) -> None:
    """The retry cannot revive the new job, and the resolver sees the failure."""
    batch = jobs.batch(session)
    first = mark(session, batch=batch)
    session.flush()
    second = mark(session, after=first)
    session.commit()
    one.claim()
    one.fail(first)
    one.resolve(first)
    assert jobs.retry(other, first.id)
    before = {"the failed job": first, "a job that the failure cancelled": second}.get(after, batch)
    last = mark(session, after=before)
    session.commit()
    one.look()
    assert state(database, last) == "blocked"
    if ends == "rollback":
        other.rollback()
        one.again()
        assert state(database, last) == "cancelled"
    else:
        other.commit()
        one.again()
        assert state(database, last) == "blocked"
        one.succeed_all()
        assert state(database, last) == "succeeded"


# --- a retry beside a resolve


class Shape:
    """A graph with failed jobs on top, which a person retries."""

    def __init__(self, session: Session, one: Process, kind: str) -> None:
        batch = jobs.batch(session) if kind == "batch" else None
        self.top = [mark(session, n, batch=batch) for n in range(3)]
        session.flush()
        self.middle = mark(session, after=batch or self.top)
        self.last = mark(session, after=self.middle)
        self.below = [self.middle, self.last]
        session.commit()
        self.ids = [job.id for job in self.top]
        one.claim()
        one.fail(*self.ids)
        for job in (*self.top, *self.below):
            session.refresh(job)

    def retry(self, session: Session) -> None:
        for job_id in self.ids:
            assert jobs.retry(session, job_id)


@pytest.fixture(params=["several failures", "batch"])
def shape(request: pytest.FixtureRequest, session: Session, one: Process) -> Shape:
    return Shape(session, one, request.param)


def retried(shape: Shape, session: Session) -> None:
    shape.retry(session)
    session.commit()


@pytest.mark.parametrize("place", ["settle", "settle 2"])
def test_a_retry_waits_for_the_resolver_and_revives_what_that_cancels(
    place: str, shape: Shape, database: Engine, one: Process, two: Process, other: Session
) -> None:
    futures: list[Any] = []
    with RowWaiters(database) as waiting:
        one.resolve(*shape.ids, before={place: lambda: futures.append(waiting.for_row(partial(retried, shape, other)))})
        futures[0].result(20)
    one.again()
    assert [state(database, job) for job in shape.below] == ["blocked", "blocked"]
    two.succeed_all()
    assert [state(database, job) for job in shape.below] == ["succeeded", "succeeded"]


@pytest.mark.parametrize("place", ["lock_watchers", "settle", "lock_watchers 2"])
def test_a_resolve_beside_a_retry_that_has_not_committed(
    place: str, shape: Shape, database: Engine, one: Process, two: Process, other: Session
) -> None:
    """The retry holds what hangs on it, from before the resolve on until one of its statements."""
    if place.startswith("lock_watchers"):
        one.resolve(*shape.ids, before={place: partial(retried, shape, other)})
    else:
        shape.retry(other)
        one.resolve(*shape.ids)
        other.commit()
    one.again()
    assert [state(database, job) for job in shape.below] == ["blocked", "blocked"]
    two.succeed_all()
    assert [state(database, job) for job in shape.below] == ["succeeded", "succeeded"]


def test_of_several_revived_jobs_of_one_unique_key_the_newest_waits_again(
    session: Session, database: Engine, one: Process, two: Process
) -> None:
    first = mark(session)
    session.commit()
    one.claim()
    one.fail(first)
    cancelled: list[shop.MyJob] = []
    for _ in range(2):
        cancelled.append(mark(session, after=first, unique_key="k"))
        session.commit()
        one.look()
    assert [state(database, job) for job in cancelled] == ["cancelled", "cancelled"]
    assert jobs.retry(session, first)
    session.commit()
    assert [state(database, job) for job in cancelled] == ["cancelled", "blocked"]
    two.succeed_all()
    assert [state(database, job) for job in cancelled] == ["cancelled", "succeeded"]


# --- a person's cancel beside a resolve


def test_a_cancel_that_has_not_committed_wins(session: Session, database: Engine, one: Process, other: Session) -> None:
    first, second, last = pair(session)
    below = mark(session, after=last, if_failed="run")
    session.commit()
    one.claim()
    one.end(first, second)
    assert jobs.cancel(other, last.id)
    one.resolve(first, second)
    other.commit()
    one.again()
    assert state(database, last) == "cancelled"
    one.look()
    assert state(database, below) == "queued"


@pytest.mark.parametrize("outcome", ["end", "fail"])
def test_a_cancel_waits_for_the_resolver(
    outcome: str, session: Session, database: Engine, one: Process, other: Session
) -> None:
    first = mark(session)
    session.flush()
    last = mark(session, after=first)
    session.commit()
    one.claim()
    getattr(one, outcome)(first)
    answers: list[Any] = []

    def cancel() -> bool:
        is_cancelled = bool(jobs.cancel(other, last.id))
        other.commit()
        return is_cancelled

    with RowWaiters(database) as waiting:
        one.resolve(first, before={"settle": lambda: answers.append(waiting.for_row(cancel))})
        assert answers[0].result(20) is (outcome == "end")
    assert state(database, last) == "cancelled"


# --- who joins a batch beside its closing


def reported(session: Session, one: Process) -> tuple[BatchMixin, shop.MyJob, shop.MyJob]:
    """A batch whose only job has ended, that job, and the one after the batch."""
    batch = jobs.batch(session)
    first = mark(session, batch=batch)
    session.flush()
    report = mark(session, after=batch)
    session.commit()
    one.claim()
    one.end(first)
    return batch, first, report


@pytest.mark.parametrize(
    ("place", "ends"),
    [
        *((place, "commit") for place in ("lock_watchers", "settle", "after")),
        *((place, "rollback") for place in ("lock_watchers", "after")),
    ],
)
def test_a_batch_stays_open_for_whoever_is_joining(
    place: str, ends: str, session: Session, database: Engine, one: Process, other: Session
) -> None:
    batch, first, report = reported(session, one)
    joined = mark(other, batch=other.merge(batch, load=False))
    other.flush()
    joined_id = joined.id
    finish = other.commit if ends == "commit" else other.rollback
    one.resolve(first, before={} if place == "after" else {place: finish})
    if place == "after":
        assert state(database, report) == "blocked"
        finish()
    one.again()
    if ends == "commit":
        assert state(database, report) == "blocked"
        one.claim()
        one.end(joined_id)
        one.resolve(joined_id)
    assert state(database, report) == "queued"


@pytest.mark.parametrize("is_rolled_back", [False, True])
def test_who_joins_waits_for_the_closing(
    is_rolled_back: bool, session: Session, database: Engine, one: Process, other: Session
) -> None:
    batch, first, report = reported(session, one)
    joining: list[Any] = []

    def join() -> int:
        joined = mark(other, batch=other.merge(batch, load=False))
        other.commit()
        return joined.id

    def begin_to_join() -> None:
        joining.append(waiting.for_row(join))
        if is_rolled_back:
            raise OperationalError("", None, Exception("the connection is lost"))

    with RowWaiters(database) as waiting:
        with suppress(OperationalError):
            one.resolve(first, before={"settle": begin_to_join})
        if not is_rolled_back:
            with pytest.raises(ArgumentsError, match="is finished"):
                joining[0].result(20)
    if is_rolled_back:
        joined = joining[0].result(20)
        one.resolve(first)
        assert state(database, report) == "blocked"
        one.claim()
        one.end(joined)
        one.resolve(joined)
    assert state(database, report) == "queued"


# --- rows that go


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_deletion_beside_an_enqueue_changes_nothing_until_that_has_ended(
    ends: str, session: Session, database: Engine, one: Process, other: Session
) -> None:
    first = mark(session)
    session.commit()
    first_id, last_id = first.id, mark(session, after=first).id
    assert Delete().one(jobs._changing(other, "delete"), first_id).left == (first_id,)
    other.rollback()
    getattr(session, ends)()
    assert Delete().one(jobs._changing(other, "delete"), first_id)
    other.commit()
    one.look()
    assert state(database, last_id) == ("cancelled" if ends == "commit" else "gone")


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_an_enqueue_waits_for_a_deletion(
    ends: str, session: Session, database: Engine, one: Process, other: Session
) -> None:
    first = mark(session)
    session.commit()
    assert Delete().one(jobs._changing(other, "delete"), first.id)

    def enqueue() -> int:
        last = mark(session, after=first)
        session.commit()
        return last.id

    with RowWaiters(database) as waiting:
        enqueuing = waiting.for_row(enqueue)
        getattr(other, ends)()
        if ends == "commit":
            with pytest.raises(ArgumentsError, match="has been deleted"):
                enqueuing.result(20)
        else:
            assert state(database, enqueuing.result(20)) == "blocked"
