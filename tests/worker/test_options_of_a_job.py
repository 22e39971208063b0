"""What `options()` gives to one job for its life: a timeout, a retention, and a time to expire."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Text, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import ConcurrencyLimit, JobMixin, Jobs, RateLimit, Unique
from sqla_jobs.queries.delete_jobs import Removal
from tests.helpers import wait_until


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    note: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=MyJob)
Job: Any = jobs.Job
PAST = datetime.now(UTC) - timedelta(hours=1)
AHEAD = datetime.now(UTC) + timedelta(hours=1)
ran: list[int] = []


@jobs.task
def plain(n: int) -> None:
    ran.append(n)


@jobs.task(limits=ConcurrencyLimit(1, key="n"))
def keyed(n: int) -> None:
    ran.append(n)


@jobs.task(limits=RateLimit(1, per=3600))
def rated(n: int) -> None:
    ran.append(n)


@jobs.task(limits=ConcurrencyLimit(1, key="key", ordered=True))
def ordered(n: int, key: str = "a") -> None:
    ran.append(n)


@jobs.task(timeout=60, max_attempts=1)
def slow() -> None:
    while True:
        time.sleep(0.005)


@jobs.task(max_attempts=1)
async def slow_coroutine() -> None:
    await asyncio.sleep(60)


@jobs.task(max_attempts=2)
def fails() -> None:
    raise ValueError


@jobs.task(retention={"succeeded": 86400, "failed": None})
def daily(n: int) -> None: ...


@pytest.fixture
def application() -> Jobs[Any]:
    ran.clear()
    return jobs


def job(session: Session, job_id: int) -> Any:
    session.rollback()
    return session.get_one(Job, job_id, populate_existing=True)


class TestExpires:
    @pytest.mark.parametrize("task", [plain, keyed, rated, ordered], ids=lambda task: task.name)
    def test_a_job_that_has_not_begun_by_then_ends_as_cancelled_without_an_attempt(
        self, database: Engine, session: Session, task: Any
    ) -> None:
        late = [task.options(expires=PAST).enqueue(session, n=n) for n in (1, 2, 3)]
        task.options(expires=AHEAD).enqueue(session, n=4)
        session.commit()
        assert jobs.why(session, late[0])[-1].startswith("It expired at")
        with jobs.worker({"default": 1}, bind=database, clock=False):
            wait_until(lambda: ran)
        assert ran == [4]
        for one in late:
            ended = job(session, one.id)
            assert (ended.state, ended.attempt, ended.runs[0].error_type) == ("cancelled", 0, "Expired")
            assert "had not begun when it expired" in jobs.why(session, ended)[-1]
        jobs.retry(session, late[0])
        session.commit()
        assert "expire" not in " ".join(jobs.why(session, late[0]))
        if task is not rated:
            assert jobs.worker(bind=database).drain() == 1
            assert job(session, late[0].id).state == "succeeded"

    def test_a_job_that_has_begun_does_not_expire(self, database: Engine, session: Session) -> None:
        one = fails.options(expires=AHEAD).enqueue(session)
        session.commit()
        worker = jobs.worker(bind=database, clock=False)
        worker.drain()
        session.execute(update(Job).values(expires_at=PAST, run_at=PAST))
        session.commit()
        jobs.worker(bind=database).drain()
        assert [run.outcome for run in job(session, one.id).runs] == ["retried", "failed"]


class TestTimeout:
    @pytest.mark.slow
    @pytest.mark.parametrize("task", [slow, slow_coroutine], ids=lambda task: task.name)
    def test_of_a_job_stands_in_place_of_the_tasks(self, database: Engine, session: Session, task: Any) -> None:
        one = task.options(timeout=timedelta(seconds=0.2)).enqueue(session)
        session.commit()
        jobs.worker(bind=database).drain()
        (run,) = job(session, one.id).runs
        assert (run.outcome, run.error) == ("failed", "ran longer than its timeout of 0.2 s")


def end(session: Session, *ended: Any, days: float, state: str = "succeeded") -> list[int]:
    session.flush()
    ids = [one.id for one in ended]
    moment = func.now() - timedelta(days=days)
    session.execute(update(Job).where(Job.id.in_(ids)).values(state=state, finished_at=moment))
    session.commit()
    return ids


def left(session: Session) -> list[int]:
    session.rollback()
    return [*session.scalars(select(Job.id).order_by(Job.id))]


class TestRetention:
    def test_of_a_job_stands_in_place_of_the_tasks_and_the_workers(self, database: Engine, session: Session) -> None:
        long, short = (timedelta(days=days) for days in (30, 0.5))
        kept = [
            *end(session, daily.options(retention=long).enqueue(session, n=1), days=20),
            *end(session, plain.options(retention=long).enqueue(session, n=1), days=20, state="cancelled"),
            *end(session, daily.options(retention=short).enqueue(session, n=1), days=0.4),
            *end(session, daily.enqueue(session, n=1), days=0.9),
        ]
        end(session, daily.options(retention=short).enqueue(session, n=1), days=0.6)
        end(session, daily.options(retention=short).enqueue(session, n=1), days=0.6, state="failed")
        end(session, plain.options(retention=0).enqueue(session, n=1), days=0.01)
        end(session, daily.enqueue(session, n=1), days=1.1)
        session.execute(update(Job).where(Job.id == kept[0]).values(retention=float("nan")))  # as SQL may
        session.commit()
        with jobs.worker(bind=database, clock=False):
            wait_until(lambda: left(session) == kept)

    def test_keeps_a_graph_until_the_last_of_its_jobs_may_go(self, database: Engine, session: Session) -> None:
        short = plain.options(retention=3600).enqueue(session, n=1)
        long = plain.options(retention=timedelta(days=30), after=short).enqueue(session, n=2)
        kept = end(session, short, long, days=20)
        first = plain.options(retention=3600).enqueue(session, n=1)
        last = plain.options(retention=7200, after=first).enqueue(session, n=2)
        end(session, first, last, days=1)
        with jobs.worker(bind=database, clock=False):
            wait_until(lambda: left(session) == kept)

    @pytest.mark.parametrize("analyzed", [True, False])
    def test_the_pruner_reads_only_the_jobs_that_have_one(self, session: Session, analyzed: bool) -> None:
        ended = (
            "INSERT INTO sqla_jobs (task, args, state, finished_at, retention) SELECT 'plain', '{}', 'succeeded', "
            "now() - interval '1 day', CASE WHEN n % 5000 = 0 THEN 60 END FROM generate_series(1, 20000) AS n"
        )
        session.execute(text(ended))
        session.commit()
        if analyzed:
            session.execute(text("ANALYZE sqla_jobs"))
            session.commit()
        session.connection().invalidate()
        session.rollback()
        assert len(Removal(jobs._models).find_past_own(session, after=0, limit=1000)) == 4
        read = "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'sqla_jobs'"
        scanned, fetched = session.execute(text(read)).one()
        assert (scanned, fetched <= 8) == (0, True)


def test_a_replaced_job_has_the_options_of_the_last_enqueue(session: Session) -> None:
    replace = Unique(on_conflict="replace", max_delay=None)
    given = plain.options(delay=60, unique_key="k", unique=replace, timeout=5, expires=9, retention=7)
    one = given.enqueue(session, n=1)
    assert (one.timeout, one.retention, one.expires_at is not None) == (5.0, 7.0, True)
    assert plain.options(delay=60, unique_key="k", unique=replace).enqueue(session, n=2) is one
    assert (one.timeout, one.retention, one.expires_at) == (None, None, None)
