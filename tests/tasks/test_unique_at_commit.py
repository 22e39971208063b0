"""`enqueue_at_commit` writes in the last moment of the caller's transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from transaction import TransactionManager
from zope.sqlalchemy import register

from sqla_jobs import ArgumentsError, ConcurrencyLimit, Jobs, RunContext, Unique
from sqla_jobs.testing import assert_enqueued, assert_not_enqueued, drain, enqueued, run_job
from tests.helpers import states, wait_until


class Base(DeclarativeBase):
    pass


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)


jobs = Jobs(Base)
REQUESTS = 20


@jobs.task(unique=Unique("account", on_conflict="replace", max_delay=600))
def index(account: int, note: str = "") -> None: ...


@jobs.task(unique=Unique("account"))
def bill(account: int, note: str = "") -> None: ...


def note_it(session: Session, account: int) -> None:
    index.enqueue_at_commit(session, account, "from a task")


@jobs.task
def touch(session: Session, account: int) -> None:
    note_it(session, account)


@jobs.task
def touch_in_steps(session: Session, run: RunContext, account: int) -> None:
    run.step("touch", note_it, session, account)
    run.sleep("rest", 3600)


@jobs.task
def touch_before_a_step(session: Session, run: RunContext, account: int) -> None:
    index.enqueue_at_commit(session, account)
    run.step("touch", len, "")


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def notes(session: Session) -> list[str]:
    """Of all committed jobs, in the order of their accounts."""
    session.rollback()
    found = session.scalars(select(jobs.Job.args).order_by(jobs.Job.args["account"], jobs.Job.id))
    return [str(args.get("note", "")) for args in found]


def inserts(engine: Engine) -> list[str]:
    """What is sent from now on to insert or change jobs."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "INTO sqla_jobs" in statement:
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    return sent


@pytest.mark.parametrize("task", [index, bill])
def test_transactions_that_enqueue_one_key_do_not_wait_for_each_other(database: Engine, task: Any) -> None:
    """All of them are in their transactions at once, which on the old way only one gets to."""
    together = threading.Barrier(REQUESTS, timeout=20)
    engine = create_engine(database.url, pool_size=REQUESTS)

    def request(number: int) -> None:
        with Session(engine) as session:
            session.connection()
            task.enqueue_at_commit(session, 17, str(number))
            together.wait()
            session.commit()

    with ThreadPoolExecutor(REQUESTS) as threads:
        list(threads.map(request, range(REQUESTS)))
    engine.dispose()
    with Session(database) as session:
        job = session.scalars(select(jobs.Job)).one()
        assert (job.times_replaced or 0) == (0 if task is bill else REQUESTS - 1)


@pytest.mark.slow
@pytest.mark.parametrize("task", [index, bill])
def test_two_keys_in_opposite_orders_do_not_deadlock(database: Engine, task: Any) -> None:
    together = threading.Barrier(2, timeout=20)

    def request(*accounts: int) -> None:
        for _ in range(20):
            with Session(database) as session:
                for account in accounts:
                    task.enqueue_at_commit(session, account)
                bill.enqueue_at_commit(session, accounts[0])
                together.wait()
                session.commit()

    with ThreadPoolExecutor() as threads:
        both = [threads.submit(request, 1, 2), threads.submit(request, 2, 1)]
        assert [one.result(60) for one in both] == [None, None]


@pytest.mark.parametrize("task", [index, bill])
def test_several_enqueues_of_one_key_are_one_write(database: Engine, session: Session, task: Any) -> None:
    sent = inserts(database)
    for note in "abc":
        task.enqueue_at_commit(session, 17, note)
        task.enqueue_at_commit(session, 16, note)
    assert sent == []
    session.commit()
    assert len(sent) == (2 if task is bill else 1)
    assert notes(session) == ["c", "c"]


@pytest.mark.parametrize("task", [index, bill])
@pytest.mark.parametrize("many", [True, False])
def test_the_last_enqueue_of_a_key_wins_whichever_way_it_took(session: Session, task: Any, many: bool) -> None:
    task.enqueue_at_commit(session, 1, "late")
    index.enqueue(session, 2, "early")
    index.enqueue_at_commit(session, 2, "late")
    if many:
        task.enqueue_many(session, [{"account": 1, "note": "early"}])
    else:
        task.enqueue(session, 1, "early")
    session.commit()
    assert notes(session) == ["early", "late"]


def test_a_savepoint_that_is_rolled_back_brings_back_the_enqueue_before_it(session: Session) -> None:
    index.enqueue_at_commit(session, 1, "late")
    with session.begin_nested() as savepoint:
        index.enqueue(session, 1, "undone")
        savepoint.rollback()
    session.commit()
    assert notes(session) == ["late"]


def test_a_job_that_is_not_unique_is_written_at_the_commit_too(database: Engine, session: Session) -> None:
    sent = inserts(database)
    touch.options(delay=60, headers={"a": "b"}).enqueue_at_commit(session, 1)
    bill.options(unique=Unique(lambda _: None)).enqueue_at_commit(session, 1, "no key")
    session.flush()
    assert sent == []
    session.commit()
    job = session.scalars(select(jobs.Job).where(jobs.Job.task == "touch")).one()
    assert (job.state, job.args, job.headers, job.unique_key) == ("scheduled", {"account": 1}, {"a": "b"}, None)
    assert notes(session) == ["", "no key"]


def leave_a_savepoint_open(session: Session) -> None:
    """A helper that forgets to release what it has begun."""
    session.begin_nested()
    session.connection()


def test_a_savepoint_that_is_rolled_back_takes_its_enqueues_along(session: Session) -> None:
    index.enqueue_at_commit(session, 1, "before")
    savepoint = session.begin_nested()
    index.enqueue_at_commit(session, 1, "undone")
    index.enqueue_at_commit(session, 2, "undone")
    with session.begin_nested():
        index.enqueue_at_commit(session, 3, "undone")
    savepoint.rollback()
    with session.begin_nested():
        index.enqueue_at_commit(session, 4, "kept")
    session.commit()
    assert notes(session) == ["before", "kept"]


def test_it_is_written_after_the_last_flush_and_what_listeners_enqueue_is_not_lost(
    database: Engine, session: Session
) -> None:
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.extend(table for table in ("pages", "sqla_jobs") if f"INTO {table}" in statement)

    event.listen(database, "before_cursor_execute", note)
    event.listen(session, "before_flush", lambda *_: index.enqueue_at_commit(session, 1, "from a flush"))
    event.listen(session, "before_commit", lambda *_: index.enqueue_at_commit(session, 2, "from a commit"))
    index.enqueue_at_commit(session, 3)
    session.add(Page())
    session.commit()
    assert sent[:2] == ["pages", "sqla_jobs"]
    assert notes(session) == ["from a flush", "from a commit", ""]


@pytest.mark.parametrize("commits", [True, False])
def test_the_owner_of_a_connection_decides_about_what_a_session_on_it_enqueued(database: Engine, commits: bool) -> None:
    """The session itself is neither flushed nor committed, and hears of nothing."""
    with database.connect() as connection:
        outer = connection.begin()
        session = Session(connection, join_transaction_mode="rollback_only")
        index.enqueue_at_commit(session, 17)
        outer.commit() if commits else outer.rollback()
        session.close()
    with Session(database) as session:
        assert notes(session) == [""] * commits


def test_an_asynchronous_session_writes_at_its_commit(database: Engine) -> None:
    async def request() -> list[str]:
        engine = create_async_engine(database.url)
        async with AsyncSession(engine) as session:
            for number in range(2):
                await session.run_sync(index.enqueue_at_commit, 17, str(number))
            await session.commit()
            found = [job.args["note"] for job in await session.scalars(select(jobs.Job))]
        await engine.dispose()
        return found

    assert asyncio.run(request()) == ["1"]


def test_a_manager_of_transactions_commits_a_session_that_has_only_such_enqueues(database: Engine) -> None:
    manager: Any = TransactionManager(explicit=True)
    with Session(database) as session:
        register(session, transaction_manager=manager)
        manager.begin()
        index.enqueue_at_commit(session, 1, "alone")
        manager.commit()
        manager.begin()
        session.connection()
        manager.savepoint()
        index.enqueue_at_commit(session, 2, "after a savepoint")
        manager.commit()
        manager.begin()
        index.enqueue_at_commit(session, 3, "aborted")
        manager.abort()
    with Session(database) as session:
        assert notes(session) == ["alone", "after a savepoint"]


def test_workers_are_told_after_the_commit(database: Engine, session: Session) -> None:
    """They do not poll."""
    with jobs.worker(bind=database, clock=False):
        index.enqueue_at_commit(session, 17)
        session.commit()
        wait_until(lambda: [*states(session).values()] == ["succeeded"])


@pytest.mark.slow
@pytest.mark.parametrize("task", [touch, touch_in_steps])
def test_the_commit_of_a_run_or_of_a_step_writes(database: Engine, session: Session, task: Any) -> None:
    task.enqueue(session, 17)
    session.commit()
    jobs.worker(bind=database).drain()
    assert "from a task" in notes(session)


def test_a_step_after_such_an_enqueue_is_refused(database: Engine, session: Session) -> None:
    job = touch_before_a_step.enqueue(session, 17)
    session.commit()
    jobs.worker(bind=database).drain()
    session.refresh(job)
    assert job.runs[0].error_type == "sqla_jobs.errors.JobsError"
    assert notes(session) == [""]


def test_the_test_kit_sees_it_before_the_commit(session: Session) -> None:
    index.enqueue_at_commit(session, 17, "a")
    assert assert_enqueued(session, index, account=17).args["note"] == "a"
    with session.begin_nested() as savepoint:
        index.enqueue_at_commit(session, 17, "b")
        assert [job.args["note"] for job in enqueued(session, index)] == ["b"]
        savepoint.rollback()
    assert [job.args["note"] for job in enqueued(session, index)] == ["a"]
    index.enqueue_at_commit(session, 17, "c")
    with session.begin_nested() as savepoint:
        assert_enqueued(session, index, note="c")
        savepoint.rollback()
    assert_enqueued(session, index, note="c")
    touch.enqueue(session, 18)
    assert drain(session, jobs).runs == 3
    run_job(session, touch)(19)
    assert assert_enqueued(session, index, account=19)
    session.rollback()
    assert_not_enqueued(session, index)


def test_what_is_wrong_is_said_at_the_call(database: Engine, session: Session) -> None:
    def no_key(arguments: Mapping[str, Any]) -> object:
        raise ValueError

    wrong: Any = "seventeen"
    limited = jobs.task(name="limited", unique=Unique(), limits=ConcurrencyLimit(1, key=no_key))(keep)
    with pytest.raises(ArgumentsError):
        index.enqueue_at_commit(session, wrong)
    with pytest.raises(ArgumentsError):
        limited.enqueue_at_commit(session, 17)
    with pytest.raises(ArgumentsError, match="after= and batch="):
        index.options(batch=jobs.batch(session)).enqueue_at_commit(session, 17)
    with pytest.raises(ArgumentsError, match="on_conflict='raise'"):
        index.options(unique=Unique("account", on_conflict="raise")).enqueue_at_commit(session, 17)
    with Session(database, twophase=True) as two_phases, pytest.raises(ArgumentsError, match="twophase"):
        index.enqueue_at_commit(two_phases, 17)
    session.commit()
    assert notes(session) == []


def keep(account: int) -> None: ...


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


@pytest.mark.parametrize("end", [Session.rollback, Session.close])
def test_a_transaction_that_is_rolled_back_writes_nothing_later(
    session: Session, end: Callable[[Session], None]
) -> None:
    index.enqueue_at_commit(session, 17)
    end(session)
    session.add(Page())
    session.commit()
    assert notes(session) == []


@pytest.mark.parametrize("commit", [lambda session: session.get_transaction().commit(), Session.commit])
def test_a_commit_that_finds_open_savepoints_writes(session: Session, commit: Callable[[Session], None]) -> None:
    session.begin()
    with session.begin_nested():
        leave_a_savepoint_open(session)
    session.begin_nested()
    index.enqueue_at_commit(session, 1, "in the first")
    session.begin_nested()
    index.enqueue_at_commit(session, 2, "in the second")
    commit(session)
    assert notes(session) == ["in the first", "in the second"]
