"""The order of a key's jobs that become ready together: after one job, or when many delayed jobs are due."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Retry
from sqla_jobs.actions.selection import Selection
from sqla_jobs.queries.resolve import MOST
from tests import limited_shop as shop
from tests.limited_shop import jobs
from tests.limits.claims import Claims, as_worker

pytestmark = pytest.mark.slow

_KEYS = 12


@pytest.fixture
def claims(database: Engine) -> Iterator[Claims]:
    with as_worker(database, jobs) as claims:
        yield claims


@pytest.fixture
def other(database: Engine) -> Iterator[Claims]:
    with as_worker(database, jobs) as other:
        yield other


def after_one_job(session: Session, count: int) -> None:
    """They are blocked until a job without limits has ended."""
    first = shop.plain.enqueue(session, n=0)
    session.flush()
    shop.ordered.options(after=first).enqueue_many(session, arguments(count))


def delayed(session: Session, count: int) -> None:
    """They are due, some of them at the same time, and in another order than that of their ids and places on disk."""
    due = datetime.now(UTC) - timedelta(minutes=10)
    shop.ordered.options(run_at=due).enqueue_many(session, arguments(count))
    later = "(CAST(id * 7919 AS int) % :count / 2) * interval '1 ms'"
    session.execute(text(f"UPDATE sqla_jobs SET run_at = run_at + {later}"), {"count": count})


def arguments(count: int) -> Iterable[dict[str, int]]:
    return ({"account": n % _KEYS, "n": n} for n in range(count))


def queued(engine: Engine) -> list[int]:
    """The `n` of the queued jobs of ordered keys, in the order of their positions."""
    job = jobs.Job
    rows = select(job.args["n"].as_integer()).where(job.state == "queued", job.task == "ordered")
    with Session(engine) as session:
        return [*session.scalars(rows.order_by(job.position))]


def test_ordered_jobs_after_a_job_are_left_to_who_queues_some_of_them_already(
    database: Engine, claims: Claims, other: Claims
) -> None:
    with Session(database) as session:
        after_one_job(session, 2 * MOST)
        session.flush()
        plain = shop.plain.options(after=session.get_one(jobs.Job, 1)).enqueue(session, n=0)
        session.commit()
        plain_ids = [plain.id]
    (first,) = claims.plain()
    claims.end(first)

    def resolve(one: Claims, connection: Connection) -> None:
        watchers = one.queries.lock_watchers(connection, [first.job_id])
        one.queries.settle(connection, watchers.ids)

    with database.begin() as connection:
        resolve(claims, connection)
        with database.begin() as theirs:
            watchers = other.queries.lock_watchers(theirs, [first.job_id])
            assert (watchers.ids, bool(watchers.left)) == (plain_ids, True)
            other.queries.settle(theirs, watchers.ids)
    with database.begin() as theirs:
        resolve(other, theirs)
    assert queued(database) == [*range(2 * MOST)]


def test_due_jobs_of_ordered_keys_are_left_to_who_queues_some_of_them_already(
    database: Engine, claims: Claims, other: Claims
) -> None:
    with Session(database) as session:
        delayed(session, 40)
        for n in range(5):
            shop.plain.options(run_at=datetime.now(UTC) - timedelta(minutes=n)).enqueue(session, n=n)
        in_order = session.scalars(select(jobs.Job).where(jobs.Job.task == "ordered")).all()
        session.commit()
        expected = [job.args["n"] for job in sorted(in_order, key=lambda job: (job.run_at, job.id))]
    with database.begin() as connection:
        assert claims.queries.promote(connection, limit=9).promoted == 9 + 5
        with database.begin() as theirs:
            assert other.queries.promote(theirs).promoted == 0
            assert 0 < other.queries.promote(theirs).due_in < 1, "it looks again"
    with database.begin() as theirs:
        assert other.queries.promote(theirs, limit=20).promoted == 20
        assert other.queries.promote(theirs).promoted == 11
        assert other.queries.promote(theirs).due_in == math.inf
    assert queued(database) == expected


def test_ordered_jobs_that_a_person_retries_together_start_in_the_order_of_their_ids(
    database: Engine, claims: Claims
) -> None:
    with Session(database) as session:
        shop.ordered.enqueue_many(session, arguments(20))
        session.commit()
        for job_id in session.scalars(select(jobs.Job.id).order_by(jobs.Job.id.desc())).all():
            assert jobs.cancel(session, job_id)  # so their rows lie in another order
            session.commit()
        it = nullcontext(Changing(session, jobs._models, jobs.tasks))
        (done,) = Retry().in_batches(lambda: it, Selection())
        session.commit()
    assert (done.changed, queued(database)) == (20, [*range(20)])
