"""A job exists if and only if the transaction that enqueued it committed."""

from __future__ import annotations

import asyncio
import resource
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, Text, create_engine, delete, event, func, insert, make_url, select, text, update
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry, scoped_session, sessionmaker
from tenacity import Retrying, wait_fixed

from sqla_jobs import ArgumentsError, DeclarationError, JobMixin, Jobs, JobsError, JobState, Unique, UnknownTask
from sqla_jobs.testing import drain
from tests.helpers import as_id, wait_until


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class MyJob(JobMixin):
    tenant: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=MyJob)
ran: list[Any] = []


@jobs.task(queue="mail", priority=2, max_attempts=7)
def send(email: str, body: str = "") -> None:
    ran.append(email)


@jobs.task(delay=timedelta(minutes=1))
def remind(email: str) -> None:
    ran.append(email)


@jobs.task
def settle(session: Session, order: Order) -> None:
    ran.append(order.id)


@jobs.task
@dataclass
class Send:
    email: str

    def execute(self) -> None:
        ran.append(self.email)


@jobs.task
class Bill(BaseModel):
    amount: int

    def execute(self) -> None:
        ran.append(self.amount)


@pytest.fixture(scope="module")
def tables(module_engine: Engine) -> Engine:
    Base.metadata.create_all(module_engine)
    return module_engine


@pytest.fixture
def session(tables: Engine) -> Iterator[Session]:
    """A session that is rolled back at the end."""
    ran.clear()
    with Session(tables) as session:
        yield session


@pytest.fixture
def committing(engine: Engine) -> Iterator[Session]:
    """A session whose commits others see."""
    Base.metadata.create_all(engine)
    jobs.bind(engine)
    ran.clear()
    with Session(engine) as session:
        yield session


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(MyJob)) or 0


def stored(session: Session, job: MyJob) -> MyJob:
    """The job as the database has it."""
    session.flush()
    session.refresh(job)
    return job


FORMS: dict[str, Callable[[Session], MyJob]] = {
    "function": lambda session: send.enqueue(session, "ann"),
    "keywords": lambda session: send.enqueue(session, email="ann"),
    "options": lambda session: send.options(queue="mail").enqueue(session, "ann"),
    "by name": lambda session: jobs.tasks["send"].enqueue(session, email="ann"),
    "class": lambda session: jobs.enqueue(session, Send("ann")),
    "unique": lambda session: send.options(unique_key="ann").enqueue(session, "ann"),
}


MANY: dict[str, Callable[[Session], object]] = {
    "many": lambda session: send.enqueue_many(session, [{"email": "ann"}]),
    "many unique": lambda session: send.options(unique=Unique()).enqueue_many(session, [{"email": "ann"}]),
    "many classes": lambda session: jobs.enqueue_many(session, [Send("ann")]),
}


SAVEPOINTS: dict[str, Callable[[Session], object]] = {**MANY, "retry": lambda session: jobs.retry(session, 1)}


@pytest.mark.parametrize("enqueue", FORMS.values(), ids=FORMS)
def test_a_job_lives_and_dies_with_the_transaction_of_the_caller(
    committing: Session, enqueue: Callable[[Session], MyJob]
) -> None:
    enqueue(committing)
    committing.rollback()
    assert count(committing) == 0
    job = enqueue(committing)
    committing.commit()
    assert (job.state, job.args, job.attempt) == ("queued", {"email": "ann"}, 0)
    assert jobs.worker({"mail": 1, "default": 1}).drain() == 1
    assert ran == ["ann"]


def test_a_job_is_pending_like_any_object_that_is_added(session: Session) -> None:
    job = send.enqueue(session, "ann")
    assert job in session.new
    assert isinstance(job, jobs.Job)


def test_an_insert_tells_the_id_alone_and_the_rest_is_there_when_it_is_read(session: Session, tables: Engine) -> None:
    sent: list[str] = []
    job = send.enqueue(session, "a@example.org")

    def noted(*args: Any) -> None:
        sent.append(args[2])

    event.listen(tables, "before_cursor_execute", noted)
    try:
        session.flush()
        assert job.id > 0
        (inserted,) = sent
        _, asked_for = inserted.split(" RETURNING ")
        assert asked_for == "sqla_jobs.id"
        assert (job.priority, job.attempt) == (2, 0)
        assert job.run_at.utcoffset() is not None
        assert len(sent) == 2
    finally:
        event.remove(tables, "before_cursor_execute", noted)


def calls_of(function: Callable[[Session], object]) -> int:
    """How many calls of Python functions it makes in a session that is not new to it."""
    session, calls = Session(), 0

    def count_calls(_frame: object, kind: str, _of: object) -> None:
        nonlocal calls
        calls += kind == "call"

    function(session)
    sys.setprofile(count_calls)
    try:
        function(session)
    finally:
        sys.setprofile(None)
    return calls


def test_an_enqueue_costs_little_beside_adding_a_job_by_hand(session: Session) -> None:
    values: Any = {"queue": "mail", "priority": 2, "max_attempts": 7, "state": "queued"}
    by_hand = calls_of(lambda session: session.add(MyJob(task="send", args={"email": "ann", "body": "hi"}, **values)))
    assert calls_of(lambda session: send.enqueue(session, email="ann", body="hi")) - by_hand <= 16
    assert calls_of(lambda session: send.enqueue(session, email="ann")) - by_hand <= 16


def test_a_job_has_the_options_of_its_task_and_those_it_was_given(session: Session) -> None:
    job = stored(session, send.enqueue(session, "ann"))
    assert (job.queue, job.priority, job.max_attempts, job.tenant) == ("mail", 2, 7, None)
    options: Any = {"queue": "slow", "priority": -10, "max_attempts": 1, "columns": {"tenant": "acme"}}
    for job in (send.options(**options).enqueue(session, "ann"), jobs.enqueue(session, Send("ann"), **options)):
        stored(session, job)
        assert (job.queue, job.priority, job.max_attempts, job.tenant) == ("slow", -10, 1, "acme")


def test_an_option_that_is_none_is_as_the_task_was_declared(session: Session) -> None:
    options = send.options(
        delay=None, run_at=None, queue=None, priority=None, max_attempts=None, unique_key=None, columns=None
    )
    job = stored(session, options.enqueue(session, "ann"))
    assert (job.queue, job.priority, job.max_attempts, job.state) == ("mail", 2, 7, "queued")


def test_each_way_to_enqueue_carries_how_many_losses_in_a_row_end_the_job(session: Session) -> None:
    own = Jobs(registry())

    @own.task(max_lost=4)
    def tell(job_id: int) -> None: ...

    @own.task(max_lost=3, on_failure=tell, max_attempts=1)
    def work(n: int) -> None:
        raise ValueError(n)

    @own.task
    def plain(n: int) -> None: ...

    once = Unique("n", on_conflict="update")
    own.tasks["work"].enqueue(session, 1)
    work.enqueue_many(session, [{"n": 2}])
    work.options(max_lost=9).enqueue(session, 3)
    plain.enqueue(session, 4)
    plain.options(unique=once).enqueue(session, 5)
    plain.options(unique=once, max_lost=7).enqueue(session, 5)
    session.add(own.Schedule(name="often", task="work", cron="* * * * * *", args={"n": 6}))
    session.execute(text("INSERT INTO sqla_jobs (task, args) VALUES ('plain', '{\"n\": 8}')"))
    session.flush()
    drain(own, session, errors="record", ahead=1.5)
    rows = session.execute(select(own.Job.task, own.Job.args["n"].as_integer(), own.Job.max_lost)).all()
    assert {(task, n): most for task, n, most in rows if n} == {
        ("work", 1): 3,
        ("work", 2): 3,
        ("work", 3): 9,
        ("work", 6): 3,
        ("plain", 4): None,
        ("plain", 5): 7,
        ("plain", 8): None,
    }
    assert {most for task, _, most in rows if task == "tell"} == {4}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dely": 5}, "unknown option 'dely'; valid options: delay, run_at, queue"),
        ({"delay": 5, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "delay= and run_at= exclude each other"),
        ({"delay": -1}, "delay must be a timedelta or a number of seconds, from 0 to 100 years, got -1"),
        ({"delay": "5"}, "delay must be .*, got '5'"),
        ({"delay": float("nan")}, "delay must be .*, got nan"),
        ({"delay": float("inf")}, "delay must be .*, got inf"),
        ({"delay": 10**400}, "delay must be .*, got 1000"),
        ({"delay": timedelta.max}, "from 0 to 100 years"),
        ({"run_at": datetime(2030, 1, 1)}, r"run_at must be a datetime with a time zone, such as .*, got datetime"),  # noqa: DTZ001
        ({"run_at": "2030-01-01"}, "run_at must be .*, got '2030-01-01'"),
        ({"run_at": datetime(9000, 1, 1, tzinfo=UTC)}, "is out of range: write a time from the year 1000 to 8999"),
        ({"run_at": datetime(999, 1, 1, tzinfo=UTC)}, "is out of range: write a time from the year 1000 to 8999"),
        ({"queue": ""}, "queue must be .*, got ''"),
        ({"queue": "a=b"}, "without '=' and ','"),
        ({"queue": "a\x00"}, "queue must be"),
        ({"priority": -11}, "priority must be an integer from -10 to 10, got -11"),
        ({"priority": 1.0}, "priority must be .*, got 1.0"),
        ({"max_attempts": 0}, "max_attempts must be .*, got 0"),
        ({"max_lost": 1001}, "max_lost must be an integer from 1 to 1,000, got 1001"),
        ({"unique_key": ""}, "unique_key must be .*, got ''"),
        ({"unique_key": "x" * 501}, "1 to 500 characters"),
        ({"unique_key": "a\x00"}, "without NUL"),
        ({"unique_key": "a\ud800"}, "without NUL and surrogates"),
        ({"unique_key": 5}, "unique_key must be .*, got 5"),
        ({"columns": {"state": "failed"}}, "MyJob has no such column of its own; it has tenant"),
        ({"columns": {"position": 1}}, "no such column of its own"),
        ({"columns": ["tenant"]}, "columns must be a mapping .*, got list"),
    ],
    ids=as_id,
)
def test_an_option_that_no_job_could_have_is_refused_before_anything_is_changed(
    options: dict[str, Any], reason: str
) -> None:
    session = Session()
    with pytest.raises(ArgumentsError, match=reason):
        send.options(**options)
    with pytest.raises(ArgumentsError, match=reason):
        jobs.enqueue(session, Send("ann"), **options)
    assert not session.new


class TestTime:
    @pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)])
    def test_a_delay_counts_from_the_enqueue_by_the_clock_of_the_server(self, session: Session, delay: Any) -> None:
        clock = select(func.clock_timestamp())
        before = session.scalars(clock).one()
        job = stored(session, send.options(delay=delay).enqueue(session, "ann"))
        after = session.scalars(clock).one()
        assert before <= job.run_at - timedelta(seconds=90) <= after
        assert job.state == "scheduled"

    def test_a_transaction_that_began_long_ago_does_not_shorten_the_delay(self, session: Session) -> None:
        began = session.scalars(select(func.now())).one()
        session.execute(select(func.pg_sleep(0.2)))
        job = stored(session, send.options(delay=1).enqueue(session, "ann"))
        assert job.run_at - began >= timedelta(seconds=1.2)

    def test_no_delay_is_now(self, session: Session) -> None:
        assert stored(session, send.options(delay=0).enqueue(session, "ann")).state == "queued"

    def test_a_delay_that_the_task_declares_is_that_of_its_jobs(self, session: Session) -> None:
        before = session.scalars(select(func.clock_timestamp())).one()
        remind.enqueue_many(session, [{"email": "bob"}])
        remind.options(delay=None).enqueue(session, "cid")
        for job in (stored(session, remind.enqueue(session, "ann")), *session.scalars(select(MyJob))):
            assert timedelta(seconds=60) <= job.run_at - before < timedelta(seconds=70)
            assert job.state == "scheduled"

    def test_an_enqueue_overrides_the_delay_of_the_task(self, session: Session) -> None:
        assert stored(session, remind.options(delay=0).enqueue(session, "ann")).state == "queued"
        later = stored(session, remind.options(delay=3600).enqueue(session, "ann"))
        assert timedelta(minutes=59) < later.run_at - later.created_at < timedelta(minutes=61)
        moment = datetime(2999, 1, 1, tzinfo=UTC)
        assert stored(session, remind.options(run_at=moment).enqueue(session, "ann")).run_at == moment

    def test_a_retry_waits_as_the_policy_says(self, session: Session) -> None:
        @jobs.task(delay=3600, retry=Retrying(wait=wait_fixed(7)))
        def flaky() -> None:
            raise OSError

        job = flaky.options(delay=0).enqueue(session)
        drain(jobs, session, errors="record")
        session.refresh(job)
        assert timedelta(seconds=6) < job.run_at - job.runs[0].finished_at < timedelta(seconds=8)

    @pytest.mark.parametrize("delay", [-1, "5", timedelta.max], ids=as_id)
    def test_a_task_cannot_declare_what_is_no_delay(self, delay: Any) -> None:
        with pytest.raises(DeclarationError, match=r"late: delay must be a timedelta or .*, from 0 to 100 years, got"):

            @jobs.task(delay=delay)
            def late() -> None: ...

    def test_run_at_is_a_moment_in_whatever_zone(self, session: Session) -> None:
        moment = datetime(2999, 1, 1, tzinfo=UTC)
        job = stored(session, send.options(run_at=moment).enqueue(session, "ann"))
        assert (job.run_at, job.state) == (moment, "scheduled")
        assert drain(jobs, session) == 0

    def test_what_is_due_already_runs_at_once(self, session: Session) -> None:
        send.options(run_at=datetime(2000, 1, 1, tzinfo=UTC)).enqueue(session, "ann")
        assert drain(jobs, session) == 1

    def test_a_host_whose_clock_is_a_year_behind_delays_nothing(self, database_url: str) -> None:
        """The server's clock is put forward by a year, as far as unqualified names are concerned."""
        url = make_url(database_url).update_query_dict({"options": "-csearch_path=ahead,pg_catalog,public"})
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA ahead"))
            for name in ("clock_timestamp", "statement_timestamp"):
                body = f"SELECT pg_catalog.{name}() + interval '1 year'"
                connection.execute(
                    text(f"CREATE FUNCTION ahead.{name}() RETURNS timestamptz LANGUAGE sql AS $${body}$$")
                )
            connection.execute(text("SET search_path = public, ahead, pg_catalog"))
            Base.metadata.create_all(connection)
        now = datetime.now(UTC)
        with Session(engine) as session:
            delayed = stored(session, send.options(delay=60).enqueue(session, "late"))
            send.options(run_at=now + timedelta(days=300)).enqueue(session, "due")
            send.options(run_at=now + timedelta(days=400)).enqueue(session, "not due")
            assert delayed.run_at - now > timedelta(days=364)
            ran.clear()
            assert drain(jobs, session) == 1
        engine.dispose()
        assert ran == ["due"]


class TestTransactions:
    def test_a_released_savepoint_keeps_its_job_and_one_rolled_back_does_not(self, session: Session) -> None:
        with session.begin_nested():
            kept = send.enqueue(session, "kept")
        savepoint = session.begin_nested()
        send.enqueue(session, "lost")
        send.options(unique_key="lost").enqueue(session, "lost too")
        send.enqueue_many(session, [{"email": "lost as well"}])
        savepoint.rollback()
        assert session.scalars(select(MyJob)).all() == [kept]

    def test_a_session_bound_to_an_outer_transaction_is_rolled_back_with_it(self, tables: Engine) -> None:
        with tables.connect() as connection:
            outer = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                send.enqueue(session, "ann")
                send.options(unique_key="ann").enqueue(session, "ann")
                send.enqueue_many(session, [{"email": "bob"}] * 3)
                session.commit()
                assert count(session) == 5
            outer.rollback()
        with Session(tables) as session:
            assert count(session) == 0

    def test_a_scoped_session_is_taken_wherever_a_session_is(self, tables: Engine) -> None:
        scoped = scoped_session(sessionmaker(tables))
        try:
            job = send.enqueue(scoped, "ann")
            assert job in scoped.new
            assert jobs.enqueue(scoped, Send("ann")) in scoped.new
            assert send.enqueue_many(scoped, [{"email": "ann"}]) == jobs.enqueue_many(scoped, [Send("ann")]) == 1
            assert count(scoped()) == 4
        finally:
            scoped.remove()

    def test_an_async_session_enqueues_by_run_sync(self, tables: Engine) -> None:
        async def enqueue() -> tuple[int, int, list[str]]:
            engine = create_async_engine(tables.url)
            try:
                async with AsyncSession(engine) as session:
                    job = await session.run_sync(lambda inner: send.enqueue(inner, "ann"))
                    one = await session.run_sync(lambda inner: send.options(unique_key="k").enqueue(inner, "bob"))
                    await session.run_sync(lambda inner: send.enqueue_many(inner, [{"email": "cid"}] * 2))
                    await session.flush()
                    found = await session.run_sync(count)
                    await session.refresh(job)
                    states = [str(job.state), str(one.state)]
                    await session.rollback()
                    return found, await session.run_sync(count), states
            finally:
                await engine.dispose()

        assert asyncio.run(enqueue()) == (4, 0, ["queued", "queued"])

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            (sessionmaker(), r"enqueue.*\(session, .*\) takes a Session or a scoped_session, got sessionmaker"),
            (create_engine("postgresql+psycopg://"), "got Engine"),
            ("ann", "got str"),
            (async_sessionmaker(), "got async_sessionmaker"),
            (None, r"the Session is missing: write (send|jobs)\.enqueue.*\(session, "),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_no_session_is_refused_with_the_remedy(self, wrong: Any, reason: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: send.enqueue(wrong, "ann"),
            lambda: send.enqueue_many(wrong, []),
            lambda: jobs.enqueue(wrong, Send("ann")),
            lambda: jobs.enqueue_many(wrong, []),
        ]
        for call in calls:
            with pytest.raises(ArgumentsError, match=reason):
                call()

    @pytest.mark.parametrize("arguments", [{"email": 5}, {"email": "a\x00"}, {"email": "\ud800"}, {"sender": "x"}])
    def test_arguments_that_do_not_fit_leave_the_transaction_usable(
        self, session: Session, arguments: dict[str, Any]
    ) -> None:
        session.add(Order(id=1))
        enqueuers: list[Any] = [send, send.options(unique_key="k"), send.options(delay=3)]
        for enqueuer in enqueuers:
            with pytest.raises(ArgumentsError):
                enqueuer.enqueue(session, **arguments)
            with pytest.raises(ArgumentsError, match="unique_key" if enqueuer is enqueuers[1] else "item 1: "):
                enqueuer.enqueue_many(session, [{"email": "ok"}, arguments])
        session.flush()
        assert session.get(Order, 1) is not None
        assert count(session) == 0

    def test_nothing_is_sent_before_the_caller_flushes_and_nothing_is_committed_at_all(self, tables: Engine) -> None:
        engine = create_engine(tables.url)
        told: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *args: told.append(args[2]))
        event.listen(engine, "commit", lambda *args: told.append("COMMIT"))
        with Session(engine) as session:
            send.enqueue(session, "ann")
            assert told == []
            session.flush()
        engine.dispose()
        (statement,) = told
        assert statement.startswith("INSERT INTO sqla_jobs")


class TestListeners:
    """What those of a session may do while it commits."""

    @pytest.mark.parametrize("enqueue", [*FORMS.values(), *MANY.values()], ids=[*FORMS, *MANY])
    def test_after_the_commit_an_enqueue_is_refused_since_its_job_would_be_lost(
        self, tables: Engine, enqueue: Callable[[Session], object]
    ) -> None:
        with Session(tables) as session:
            session.connection()
            event.listen(session, "after_commit", enqueue)
            with pytest.raises(ArgumentsError, match=r"just committed .* enqueue it before session\.commit\(\)"):
                session.commit()
            assert not session.new

    @pytest.mark.parametrize("enqueue", FORMS.values(), ids=FORMS)
    def test_before_the_commit_an_enqueue_is_part_of_it(
        self, committing: Session, engine: Engine, enqueue: Callable[[Session], object]
    ) -> None:
        event.listen(committing, "before_commit", enqueue)
        committing.commit()
        with Session(engine) as other:
            assert count(other) == 1

    @pytest.mark.parametrize("call", SAVEPOINTS.values(), ids=SAVEPOINTS)
    def test_what_takes_a_savepoint_is_refused_before_the_commit_where_it_would_never_end(
        self, committing: Session, call: Callable[[Session], object]
    ) -> None:
        done = send.enqueue(committing, "ann")
        done.state = JobState.cancelled
        committing.commit()
        event.listen(committing, "before_commit", call)
        with pytest.raises(JobsError, match=r"a listener of before_commit .* without end"):
            committing.commit()
        event.remove(committing, "before_commit", call)
        committing.rollback()
        assert [job.state for job in committing.scalars(select(MyJob))] == ["cancelled"]

    def test_a_listener_that_has_many_jobs_once_may_enqueue_them(self, committing: Session) -> None:
        outbox = [{"email": "ann"}, {"email": "bob"}]

        def send_all(session: Session) -> None:
            if outbox:
                items = outbox[:]
                outbox.clear()
                send.enqueue_many(session, items)

        event.listen(committing, "before_commit", send_all)
        committing.commit()
        assert count(committing) == 2

    def test_after_a_failed_flush_sqlalchemy_says_what_is_wrong(self, session: Session) -> None:
        session.add_all([Order(id=1), Order(id=1)])
        with pytest.raises(IntegrityError):
            session.flush()
        send.enqueue(session, "ann")
        with pytest.raises(PendingRollbackError):
            session.flush()


class TestMany:
    def test_any_iterable_is_enqueued_in_its_order(self, session: Session) -> None:
        assert send.enqueue_many(session, ({"email": str(number)} for number in range(12_345))) == 12_345
        by_position = session.scalars(select(MyJob.args["email"].astext).order_by(MyJob.position))
        assert by_position.all() == [str(number) for number in range(12_345)]
        assert session.scalars(select(MyJob.id).order_by(MyJob.position)).all() == sorted(
            session.scalars(select(MyJob.id))
        )

    def test_nothing_is_nothing(self, session: Session) -> None:
        assert send.enqueue_many(session, []) == jobs.enqueue_many(session, iter(())) == 0

    def test_they_have_the_options_of_the_task_and_those_given(self, session: Session) -> None:
        options = send.options(priority=-1, delay=60, columns={"tenant": "acme"})
        assert options.enqueue_many(session, [{"email": "ann"}, {"email": "bob", "body": "hi"}]) == 2
        for job in session.scalars(select(MyJob)):
            assert (job.queue, job.priority, job.max_attempts, job.tenant) == ("mail", -1, 7, "acme")
            assert job.state == "scheduled"
            assert timedelta(seconds=59) < job.run_at - job.created_at < timedelta(seconds=61)

    def test_they_run(self, session: Session) -> None:
        send.enqueue_many(session, [{"email": "ann"}, {"email": "bob"}])
        assert drain(jobs, session) == 2
        assert ran == ["ann", "bob"]

    def test_instances_of_several_classes_keep_their_order(self, session: Session) -> None:
        mixed = [Send("a"), Send("b"), Bill(amount=1), Send("c"), Bill(amount=2)]
        assert jobs.enqueue_many(session, iter(mixed)) == 5
        drain(jobs, session)
        assert ran == ["a", "b", 1, "c", 2]

    def test_their_ids_are_returned_in_the_order_of_the_items(self, session: Session) -> None:
        emails = [f"{number * 7919 % 12_345}" for number in range(12_345)]
        ids = send.options(delay=5).enqueue_many(session, ({"email": email} for email in emails), returning=True)
        found = session.execute(select(MyJob.id, MyJob.args["email"].astext))
        by_id: dict[int, str] = {row[0]: row[1] for row in found}
        assert [by_id[job_id] for job_id in ids] == emails
        assert send.enqueue_many(session, [], returning=True) == []

    def test_the_ids_of_instances_of_several_classes_are_returned_too(self, session: Session) -> None:
        ids = jobs.enqueue_many(session, [Send("a"), Bill(amount=1), Send("b")], returning=True, priority=3)
        stored = [session.get_one(MyJob, job_id) for job_id in ids]
        assert [(job.task, job.priority) for job in stored] == [("Send", 3), ("Bill", 3), ("Send", 3)]
        assert [job.args for job in stored[::2]] == [{"email": "a"}, {"email": "b"}]

    def test_ids_cost_no_statement_more(self, session: Session) -> None:
        items = [{"email": "ann"}] * 6000
        sent: list[str] = []
        event.listen(session.connection(), "before_cursor_execute", lambda *call: sent.append(call[2]))
        send.enqueue_many(session, items)
        plain = len(sent)
        send.enqueue_many(session, items, returning=True)
        assert (plain, len(sent)) == (plain, 2 * plain)

    def test_rows_are_flushed_and_loaded(self, session: Session) -> None:
        orders = [Order(), Order()]
        session.add_all(orders)
        settle.enqueue_many(session, [{"order": order} for order in orders])
        drain(jobs, session)
        assert ran == [order.id for order in orders]

    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            ({"email": 5}, "item 7000: send: email does not fit"),
            ({}, "item 7000: .*missing a required argument: 'email'"),
            ({"email": "a", "delay": 5}, r"item 7000: .*send\.options\(delay=…\)"),
            ({"email": "a\x00"}, "item 7000: .*NUL"),
            (["ann"], "item 7000 must be a mapping of arguments, got list"),
            ({5: "ann"}, "item 7000"),
        ],
    )
    def test_a_wrong_one_takes_them_all_back_and_is_named(self, session: Session, item: Any, reason: str) -> None:
        earlier = send.enqueue(session, "earlier")
        session.add(Order(id=1))

        def items() -> Iterator[Any]:
            yield from ({"email": "ann"} for _ in range(7000))
            yield item

        with pytest.raises(ArgumentsError, match=reason):
            send.enqueue_many(session, items())
        assert session.scalars(select(MyJob)).all() == [earlier]
        assert session.get(Order, 1) is not None
        assert send.enqueue_many(session, [{"email": "later"}]) == 1

    @pytest.mark.parametrize(
        ("item", "error", "reason"),
        [
            (Bill.model_construct(amount="x"), ArgumentsError, "item 3: Bill: amount does not fit"),
            (Order(), UnknownTask, "Order is not a task"),
        ],
    )
    def test_a_wrong_instance_takes_them_all_back_and_is_named(
        self, session: Session, item: Any, error: type[Exception], reason: str
    ) -> None:
        with pytest.raises(error, match=reason):
            jobs.enqueue_many(session, [Send("a"), Bill(amount=1), Send("b"), item])
        assert count(session) == 0

    def test_an_iterable_that_raises_takes_them_all_back(self, session: Session) -> None:
        def items() -> Iterator[dict[str, str]]:
            yield from ({"email": "ann"} for _ in range(6000))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            send.enqueue_many(session, items())
        assert count(session) == 0

    def test_one_unique_key_for_all_of_them_is_refused(self, session: Session) -> None:
        with pytest.raises(ArgumentsError, match="enqueue_many takes no unique_key"):
            send.options(unique_key="k").enqueue_many(session, [])

    @pytest.mark.slow
    def test_very_many_need_no_more_memory_than_many(self, session: Session) -> None:
        sizes: dict[int, int] = {}

        def items() -> Iterator[dict[str, str]]:
            for number in range(200_000):
                if number in (50_000, 199_999):
                    sizes[number] = resident_bytes()
                yield {"email": f"{number}@example.org", "body": "x" * 300}

        assert send.enqueue_many(session, items()) == 200_000
        assert sizes[199_999] - sizes[50_000] < 20_000_000
        assert count(session) == 200_000


def resident_bytes() -> int:
    """How much memory this process has; where that cannot be told, how much it had at most."""
    if (statm := Path("/proc/self/statm")).exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class TestUniqueKeys:
    def test_the_second_enqueue_returns_the_job_that_is_there(self, committing: Session, engine: Engine) -> None:
        first = send.options(unique_key="k").enqueue(committing, "first")
        committing.commit()
        with Session(engine) as other:
            second = send.options(unique_key="k", priority=9).enqueue(other, "second")
            assert (second.id, second.args) == (first.id, {"email": "first"})
            assert send.options(unique_key="k2").enqueue(other, "third").id != first.id
            other.commit()
        assert count(committing) == 2

    def test_twice_in_one_transaction_is_one_job(self, session: Session) -> None:
        first = send.options(unique_key="k").enqueue(session, "first")
        assert send.options(unique_key="k").enqueue(session, "second") is first
        assert count(session) == 1

    def test_changes_of_the_caller_on_the_job_survive(self, session: Session) -> None:
        first = send.options(unique_key="k").enqueue(session, "first")
        first.tenant = "acme"
        with session.no_autoflush:
            again = send.options(unique_key="k").enqueue(session, "second")
        assert again.tenant == "acme"
        assert stored(session, again).tenant == "acme"

    @pytest.mark.slow
    def test_the_job_is_returned_as_the_database_has_it_now(self, committing: Session, engine: Engine) -> None:
        first = send.options(unique_key="k", delay=60).enqueue(committing, "first")
        committing.commit()
        assert first.priority == 2
        with Session(engine) as other:
            other.execute(update(MyJob).values(priority=5))
            other.commit()
        assert send.options(unique_key="k").enqueue(committing, "second") is first
        assert first.priority == 5

    @pytest.mark.parametrize("state", ["scheduled", "queued", "running"])
    def test_a_live_job_holds_its_key(self, session: Session, state: str) -> None:
        job = self.in_state(session, state)
        assert send.options(unique_key="k").enqueue(session, "second").id == job

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_a_job_that_ended_has_given_its_key_back(self, session: Session, state: str) -> None:
        job = self.in_state(session, state)
        assert send.options(unique_key="k").enqueue(session, "second").id != job

    @staticmethod
    def in_state(session: Session, state: str) -> int:
        lease = (
            {"current_run_id": 1, "process_id": "00000000-0000-0000-0000-000000000001"} if state == "running" else {}
        )
        statement = insert(MyJob).values(task="send", args={}, unique_key="k", state=state, **lease).returning(MyJob.id)
        return session.scalars(statement).one()

    def test_a_key_is_free_after_a_rollback(self, session: Session) -> None:
        savepoint = session.begin_nested()
        send.options(unique_key="k").enqueue(session, "first")
        savepoint.rollback()
        assert send.options(unique_key="k").enqueue(session, "second").args == {"email": "second"}
        session.rollback()
        assert send.options(unique_key="k").enqueue(session, "third").args == {"email": "third"}

    def test_it_waits_for_its_time_like_any_other(self, session: Session) -> None:
        job = send.options(unique_key="k", delay=60).enqueue(session, "first")
        assert job.state == "scheduled"
        assert job.run_at - job.created_at > timedelta(seconds=59)

    def test_own_columns_and_rows_are_stored(self, session: Session) -> None:
        session.add(order := Order())
        job = settle.options(unique_key="k", columns={"tenant": "acme"}).enqueue(session, order)
        assert (job.tenant, job.args) == ("acme", {"order": order.id})

    @pytest.mark.slow
    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_of_two_that_race_one_wins_and_both_see_its_job(
        self, committing: Session, engine: Engine, end: str
    ) -> None:
        """The second waits for the first's transaction; where that is rolled back, it enqueues its own."""
        barrier = threading.Barrier(2)

        def enqueue(name: str) -> tuple[int, str]:
            with Session(engine) as session:
                session.connection()
                barrier.wait(10)
                job = send.options(unique_key="k").enqueue(session, name)
                seen = job.id, job.args["email"]
                if end == "rollback" and seen[1] == name and first.acquire(blocking=False):
                    session.rollback()
                else:
                    session.commit()
                return seen

        for number in range(20):
            first = threading.Semaphore(1)
            with ThreadPoolExecutor(2) as pool:
                seen = set(pool.map(enqueue, [f"a{number}", f"b{number}"]))
            committing.rollback()
            live = {(job.id, job.args["email"]) for job in committing.scalars(select(MyJob))}
            assert len(live) == 1
            assert seen >= live
            assert len(seen) == (1 if end == "commit" else 2)
            committing.execute(delete(MyJob))
            committing.commit()

    @pytest.mark.slow
    def test_many_that_race_on_many_keys_never_fail(self, committing: Session, engine: Engine) -> None:
        def enqueue(number: int) -> int:
            with Session(engine) as session:
                session.add(Order(id=number))
                job_id = send.options(unique_key=f"k{number % 3}").enqueue(session, "ann").id
                session.commit()
                return job_id

        with ThreadPoolExecutor(8) as pool, worker_that_drains() as done:
            ids = list(pool.map(enqueue, range(200)))
            done.set()
        assert set(ids) == set(committing.scalars(select(MyJob.id)))
        assert committing.scalar(select(func.count()).select_from(Order)) == 200

    @pytest.mark.slow
    @pytest.mark.parametrize("delay", [None, 0.001])
    def test_a_waiting_job_that_was_returned_does_not_start_before_the_caller_commits(
        self, committing: Session, engine: Engine, delay: float | None
    ) -> None:
        options = send.options(unique_key="k", delay=delay)
        job = options.enqueue(committing, "first")
        committing.commit()
        other = send.enqueue(committing, "other")
        committing.commit()
        with Session(engine) as caller:
            assert options.enqueue(caller, "second").id == job.id
            with jobs.worker({"mail": 2}):
                wait_until(lambda: self.state(engine, other.id) == "succeeded")
                assert self.state(engine, job.id) in ("queued", "scheduled")
                assert ran == ["other"]
                caller.commit()
                wait_until(lambda: self.state(engine, job.id) == "succeeded")
        assert ran == ["other", "first"]

    @staticmethod
    def state(engine: Engine, job_id: int) -> str:
        with engine.connect() as connection:
            return str(connection.scalar(select(MyJob.state).where(MyJob.id == job_id)))

    @pytest.mark.slow
    def test_a_job_whose_row_somebody_holds_is_waited_for(self, committing: Session, engine: Engine) -> None:
        job = send.options(unique_key="k").enqueue(committing, "first")
        committing.commit()
        jobs.cancel(committing, job)  # not committed: nobody can tell whether it is live
        with ThreadPoolExecutor(1) as pool, Session(engine) as other:
            later = pool.submit(lambda: send.options(unique_key="k").enqueue(other, "second").args)
            with engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                waits = text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE query LIKE '%FOR SHARE%' AND datname = current_database()"
                )
                wait_until(lambda: connection.scalar(waits))
            assert not later.done()
            committing.commit()
            assert later.result(10) == {"email": "second"}


@contextmanager
def worker_that_drains() -> Generator[threading.Event]:
    """Runs all jobs of `send` until the event is set, and then the rest."""
    done = threading.Event()
    with jobs.worker({"mail": 2}), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(done.wait, 60)
        yield done
        assert waiting.result()
    jobs.worker({"mail": 2}).drain()


def test_jobs_of_a_loop_with_a_time_of_their_own_are_one_insert(session: Session) -> None:
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    now: Any = session.scalar(select(func.clock_timestamp()))
    for n in range(300):
        send.options(run_at=now + timedelta(minutes=n + 1)).enqueue(session, email=f"{n}@b.c")
    session.commit()
    event.remove(engine, "before_cursor_execute", note)
    assert len([one for one in sent if one.startswith("INSERT")]) == 1
    assert len(set(session.scalars(select(jobs.Job.run_at)))) == 300
