"""A job exists if and only if the transaction that enqueued it committed."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Text, create_engine, event, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry, sessionmaker

from sqla_jobs import ArgumentsError, JobMixin, Jobs, JobsError, JobState, Unique
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
    "by name": lambda session: jobs.tasks["send"].enqueue(session, email="ann"),
    "unique": lambda session: send.options(unique_key="ann").enqueue(session, "ann"),
}


MANY: dict[str, Callable[[Session], object]] = {
    "many": lambda session: send.enqueue_many(session, [{"email": "ann"}]),
    "many unique": lambda session: send.options(unique=Unique()).enqueue_many(session, [{"email": "ann"}]),
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


def test_a_job_has_the_options_of_its_task_and_those_it_was_given(session: Session) -> None:
    job = stored(session, send.enqueue(session, "ann"))
    assert (job.queue, job.priority, job.max_attempts, job.tenant) == ("mail", 2, 7, None)
    options: Any = {"queue": "slow", "priority": -10, "max_attempts": 1, "columns": {"tenant": "acme"}}
    job = stored(session, send.options(**options).enqueue(session, "ann"))
    assert (job.queue, job.priority, job.max_attempts, job.tenant) == ("slow", -10, 1, "acme")


def test_each_way_to_enqueue_carries_how_many_losses_in_a_row_end_the_job(session: Session) -> None:
    own = Jobs(registry())

    @own.task(max_lost=4)
    def tell(job_id: int) -> None: ...

    @own.task(max_lost=3, on_failure=tell, max_attempts=1)
    def work(n: int) -> None:
        raise ValueError(n)

    @own.task
    def plain(n: int) -> None: ...

    once = Unique("n", on_conflict="replace", max_delay=None)
    own.tasks["work"].enqueue(session, 1)
    work.enqueue_many(session, [{"n": 2}])
    work.options(max_lost=9).enqueue(session, 3)
    plain.enqueue(session, 4)
    plain.options(unique=once).enqueue(session, 5)
    plain.options(unique=once, max_lost=7).enqueue(session, 5)
    session.add(own.Schedule(name="often", task="work", cron="* * * * * *", args={"n": 6}))
    session.execute(text("INSERT INTO sqla_jobs (task, args) VALUES ('plain', '{\"n\": 8}')"))
    session.flush()
    drain(session, own, errors="record", ahead=1.5)
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
    "options",
    [
        {"dely": 5},
        {"run_at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 5},
        {"delay": -1},
        {"run_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"run_at": datetime(9000, 1, 1, tzinfo=UTC)},
        {"queue": "a=b"},
        {"priority": -11},
        {"max_attempts": 0},
        {"timeout": 0},
        {"retention": -1},
        {"expires": -1},
        {"expires": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"unique_key": ""},
        {"unique_key": "a\x00"},
        {"columns": {"state": "failed"}},
        {"columns": ["tenant"]},
    ],
    ids=as_id,
)
def test_an_option_that_no_job_could_have_is_refused_before_anything_is_changed(options: dict[str, Any]) -> None:
    session = Session()
    with pytest.raises(ArgumentsError, match=next(iter(options))):
        send.options(**options)
    assert not session.new


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"priority": 11}, "priority should be less than or equal to 10, got 11"),
        ({"max_attempts": "many"}, "max_attempts should be a valid integer, got 'many'"),
        ({"if_failed": "stop"}, "if_failed should be 'cancel', 'run' or 'hold', got 'stop'"),
        ({"priorty": 1}, "unknown option 'priorty'.*did you mean 'priority'"),
    ],
    ids=as_id,
)
def test_a_refused_option_is_told_with_its_task_and_where_that_is_declared(options: Any, said: str) -> None:
    with pytest.raises(ArgumentsError, match=rf"^send \(tests\.tasks\.test_enqueue\.send \(.*\.py:\d+\)\): {said}"):
        send.options(**options)


class TestTime:
    @pytest.mark.parametrize("delay", [90, timedelta(seconds=90)])
    def test_a_delay_counts_from_the_enqueue_by_the_clock_of_the_server(self, session: Session, delay: Any) -> None:
        clock = select(func.clock_timestamp())
        before = session.scalars(clock).one()
        job = stored(session, send.options(delay=delay).enqueue(session, "ann"))
        after = session.scalars(clock).one()
        assert before <= job.run_at - timedelta(seconds=90) <= after
        assert job.state == "scheduled"

    def test_a_delay_that_the_task_declares_is_that_of_its_jobs(self, session: Session) -> None:
        before = session.scalars(select(func.clock_timestamp())).one()
        remind.enqueue_many(session, [{"email": "bob"}])
        remind.options(delay=None).enqueue(session, "cid")
        for job in (stored(session, remind.enqueue(session, "ann")), *session.scalars(select(MyJob))):
            assert timedelta(seconds=60) <= job.run_at - before < timedelta(seconds=70)
            assert job.state == "scheduled"


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

    @pytest.mark.parametrize("wrong", [sessionmaker(), None], ids=as_id)
    def test_what_is_no_session_is_refused(self, wrong: Any) -> None:
        with pytest.raises(ArgumentsError):
            send.enqueue(wrong, "ann")

    @pytest.mark.parametrize("arguments", [{"email": "a\x00"}, {"sender": "x"}])
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
            with pytest.raises(ArgumentsError):
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
        with pytest.raises(JobsError, match="before_commit"):
            committing.commit()
        event.remove(committing, "before_commit", call)
        committing.rollback()
        assert [job.state for job in committing.scalars(select(MyJob))] == ["cancelled"]


class TestMany:
    def test_any_iterable_is_enqueued_in_its_order(self, session: Session) -> None:
        assert send.enqueue_many(session, ({"email": str(number)} for number in range(12_345))).inserted == 12_345
        by_position = session.scalars(select(MyJob.args["email"].astext).order_by(MyJob.position))
        assert by_position.all() == [str(number) for number in range(12_345)]
        assert session.scalars(select(MyJob.id).order_by(MyJob.position)).all() == sorted(
            session.scalars(select(MyJob.id))
        )

    def test_they_have_the_options_of_the_task_and_those_given(self, session: Session) -> None:
        options = send.options(priority=-1, delay=60, columns={"tenant": "acme"})
        assert options.enqueue_many(session, [{"email": "ann"}, {"email": "bob", "body": "hi"}]).inserted == 2
        for job in session.scalars(select(MyJob)):
            assert (job.queue, job.priority, job.max_attempts, job.tenant) == ("mail", -1, 7, "acme")
            assert job.state == "scheduled"
            assert timedelta(seconds=59) < job.run_at - job.created_at < timedelta(seconds=61)

    def test_their_ids_are_returned_in_the_order_of_the_items(self, session: Session) -> None:
        emails = [f"{number * 7919 % 12_345}" for number in range(12_345)]
        ids = send.options(delay=5).enqueue_many(session, ({"email": email} for email in emails), returning=True)
        found = session.execute(select(MyJob.id, MyJob.args["email"].astext))
        by_id: dict[int, str] = {row[0]: row[1] for row in found}
        assert [by_id[job_id] for job_id in ids] == emails
        assert send.enqueue_many(session, [], returning=True) == []

    @pytest.mark.parametrize("item", [{"email": 5}, ["ann"], {5: "ann"}])
    def test_a_wrong_one_takes_them_all_back_and_is_named(self, session: Session, item: Any) -> None:
        earlier = send.enqueue(session, "earlier")
        session.add(Order(id=1))

        def items() -> Iterator[Any]:
            yield from ({"email": "ann"} for _ in range(7000))
            yield item

        with pytest.raises(ArgumentsError, match="item 7000"):
            send.enqueue_many(session, items())
        assert session.scalars(select(MyJob)).all() == [earlier]
        assert session.get(Order, 1) is not None
        assert send.enqueue_many(session, [{"email": "later"}]).inserted == 1

    @pytest.mark.slow
    def test_very_many_need_no_more_memory_than_many(self, session: Session) -> None:
        sizes: dict[int, int] = {}

        def items() -> Iterator[dict[str, str]]:
            for number in range(200_000):
                if number in (50_000, 199_999):
                    sizes[number] = resident_bytes()
                yield {"email": f"{number}@example.org", "body": "x" * 300}

        assert send.enqueue_many(session, items()).inserted == 200_000
        assert sizes[199_999] - sizes[50_000] < 20_000_000
        assert count(session) == 200_000


def resident_bytes() -> int:
    """How much memory this process has; where that cannot be told, how much it had at most."""
    if (statm := Path("/proc/self/statm")).exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class TestUniqueKeys:
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
            with jobs.worker({"mail": 2}, clock=False):
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
