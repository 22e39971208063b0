"""A key is held by one live job; its policy says what becomes of an enqueue that finds it taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Text, event, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import (
    PARKED,
    ArgumentsError,
    ConcurrencyLimit,
    JobExists,
    JobMixin,
    Jobs,
    JobState,
    Unique,
)
from sqla_jobs.queries.unique import UniqueJobs, statements_for


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    tenant: Mapped[str | None] = mapped_column(Text)
    region: Mapped[str] = mapped_column(Text, server_default="south")


jobs = Jobs(Base, job_class=MyJob)


@jobs.task(unique=Unique("account"))
def bill(account: int, note: str = "") -> None: ...


@jobs.task(unique=Unique(["account"], on_conflict="raise"))
def close(account: int) -> None: ...


@jobs.task(unique=Unique("account", on_conflict="replace", max_delay=600))
def index(account: int, note: str = "") -> None: ...


@jobs.task(
    unique=Unique("account", on_conflict="replace", max_delay=600),
    limits=ConcurrencyLimit(1, key="account", ordered=True),
)
def export(account: int) -> None: ...


@jobs.task(unique=Unique("account", per=timedelta(days=36500)))
def welcome(account: int, note: str = "") -> None: ...


@jobs.task
def plain(account: int, note: str = "") -> None: ...


@jobs.task(unique=Unique("account", on_conflict="replace", max_delay=None))
def sync(account: int, note: str = "") -> None: ...


@pytest.fixture(scope="module")
def tables(module_engine: Engine) -> Engine:
    Base.metadata.create_all(module_engine)
    return module_engine


@pytest.fixture
def session(tables: Engine) -> Iterator[Session]:
    """A session that is rolled back at the end."""
    with Session(tables) as session:
        yield session


def notes(session: Session) -> list[str]:
    """Of all jobs, oldest first."""
    session.flush()
    return [str(args.get("note")) for args in session.scalars(select(MyJob.args).order_by(MyJob.id))]


def set_state(session: Session, job: JobMixin, state: str) -> None:
    lease = {"current_run_id": 1, "process_id": "00000000-0000-0000-0000-000000000001"} if state == "running" else {}
    session.execute(update(MyJob).where(MyJob.id == job.id).values(state=state, **lease))
    session.expire_all()


def unique_jobs(session: Session) -> UniqueJobs:
    values = {"task": "bill"}
    statements = statements_for(jobs._models, Unique(on_conflict="replace", max_delay=None), values, gated=False)
    return UniqueJobs(session, statements, values)


def key_of(job: JobMixin) -> str:
    assert job.unique_key is not None
    return job.unique_key


class TestKeys:
    @pytest.mark.parametrize(
        "policy",
        [
            {"on_conflict": "return", "per": 3600},
            {"on_conflict": "raise"},
            {"on_conflict": "replace", "max_delay": None},
        ],
    )
    def test_jobs_for_which_a_callable_returns_none_are_not_unique(self, session: Session, policy: Any) -> None:
        def even(arguments: Mapping[str, Any]) -> str | None:
            return None if arguments["account"] % 2 else "even"

        task = plain.options(unique=Unique(even, **policy))
        assert task.enqueue(session, 1) is not task.enqueue(session, 1)
        items = [{"account": account} for account in (1, 2, 3)]
        count = task.enqueue_many(session, items)
        ids = task.enqueue_many(session, [items[0], items[2]], returning=True)
        found = session.scalars(select(MyJob).order_by(MyJob.id)).all()
        assert count.inserted == 3
        assert [session.get_one(MyJob, job_id).args["account"] for job_id in ids] == [1, 3]
        assert sorted(job.args["account"] for job in found) == [1, 1, 1, 1, 2, 3, 3]
        assert {job.args["account"] for job in found if job.unique_key} == {2}
        assert {job.args["account"] for job in found if job.unique_period} == ({2} if "per" in policy else set())

    def test_a_sensitive_argument_is_not_in_the_key(self, session: Session) -> None:
        @jobs.task(name="login", sensitive=["password"], unique=Unique())
        def login(name: str, password: str) -> None: ...

        job = login.enqueue(session, "ann", "hunter2")
        assert "hunter2" not in key_of(job)
        assert login.enqueue(session, "ann", "hunter2") is job
        assert login.enqueue(session, "ann", "hunter3") is not job


def lambda_like(account: int) -> None: ...


class TestLiteralKeys:
    def test_it_takes_the_place_of_the_keys_of_a_declaration_and_keeps_its_policy(self, session: Session) -> None:
        job = close.options(unique_key="k").enqueue(session, 1)
        assert job.unique_key == "k"
        with pytest.raises(JobExists):
            close.options(unique_key="k").enqueue(session, 2)

    def test_another_task_replaces_the_job_as_a_whole(self, session: Session) -> None:
        unique = Unique(on_conflict="replace", max_delay=None)
        job = plain.options(unique_key="k", unique=unique).enqueue(session, 1)
        assert bill.options(unique_key="k", unique=unique).enqueue(session, 2) is job
        assert (job.task, job.args) == ("bill", {"account": 2})

    def test_none_can_be_like_one_that_is_made(self) -> None:
        with pytest.raises(ArgumentsError, match="unique_key"):
            plain.options(unique_key='unique:["bill",{"account":17}]')

    def test_together_with_what_makes_keys_it_is_refused(self) -> None:
        with pytest.raises(ArgumentsError, match="unique_key='k'"):
            plain.options(unique_key="k", unique=Unique("account"))


class TestPolicies:
    @pytest.mark.parametrize("task", [index, sync])
    def test_a_waiting_job_gets_new_arguments_and_priority(self, session: Session, task: Any) -> None:
        job = task.enqueue(session, 17, "a")
        assert task.options(priority=-3, columns={"tenant": "acme"}).enqueue(session, 17, "b") is job
        assert (job.args["note"], job.priority, job.tenant) == ("b", -3, "acme")
        assert notes(session) == ["b"]

    @pytest.mark.parametrize("change", ["delete", "state", "unique_key"])
    @pytest.mark.parametrize("how", ["one", "many"])
    def test_what_the_session_knows_about_the_job_counts_before_it_is_flushed(
        self, session: Session, change: str, how: str
    ) -> None:
        """Else a job that the commit deletes or ends would be returned, and none would be left."""
        job = bill.enqueue(session, 17)
        session.flush()
        if change == "delete":
            session.delete(job)
        elif change == "state":
            job.state = JobState.cancelled
        else:
            job.unique_key = None
        with session.no_autoflush:
            if how == "many":
                assert bill.enqueue_many(session, [{"account": 17, "note": "new"}]).inserted == 1
            else:
                assert bill.enqueue(session, 17, "new") is not job
        assert notes(session)[-1:] == ["new"]

    @pytest.mark.parametrize("task", [bill, index])
    def test_an_enqueue_says_whether_its_job_is_new(self, session: Session, task: Any) -> None:
        job = task.enqueue(session, 17)
        assert (job.is_new, plain.enqueue(session, 17).is_new) == (True, True)
        assert (task.enqueue(session, 17) is job, job.is_new) == (True, False)
        with pytest.raises(JobExists) as taken:
            task.options(unique=Unique("account", on_conflict="raise")).enqueue(session, 17)
        assert taken.value.job.is_new is False
        session.flush()
        session.expunge_all()
        assert [one.is_new for one in session.scalars(select(MyJob))] == [False, False]

    def test_a_free_key_takes_one_statement_and_a_thousand_take_one_too(self, session: Session) -> None:
        sent: list[str] = []
        event.listen(session.connection(), "before_cursor_execute", lambda *said: sent.append(said[2]))
        job = bill.options(columns={"tenant": "acme"}, delay=60).enqueue(session, 17)
        assert (job.args, job.tenant, job.id > 0, len(sent)) == ({"account": 17}, "acme", True, 1)
        assert (job.state, job.region, job.run_at is not None) == ("scheduled", "south", True)  # loaded when read
        sent.clear()
        bill.enqueue_many(session, [{"account": n} for n in range(100, 1100)])
        assert ["INSERT" in one for one in sent if "SAVEPOINT" not in one] == [True]

    def test_replacing_takes_away_the_own_columns_that_are_not_given(self, session: Session) -> None:
        job = index.options(columns={"tenant": "acme", "region": "north"}, headers={"a": "b"}).enqueue(session, 17)
        assert index.options(columns={"tenant": "zoo"}).enqueue(session, 17) is job
        assert (job.tenant, job.region, job.headers) == ("zoo", "south", None)
        index.enqueue_many(session, [{"account": 17}])
        assert (job.tenant, job.region) == (None, "south")

    @pytest.mark.parametrize("how", ["one", "many"])
    def test_a_savepoint_takes_back_what_the_job_looks_like(self, session: Session, how: str) -> None:
        job = index.enqueue(session, 17, "before")
        savepoint = session.begin_nested()
        if how == "one":
            index.enqueue(session, 17, "undone")
        else:
            index.enqueue_many(session, [{"account": 17, "note": "undone"}])
        assert job.args["note"] == "undone"
        savepoint.rollback()
        assert job.args["note"] == "before"

    def test_replacing_delays_it_anew_and_moves_it(self, session: Session) -> None:
        job = index.options(delay=60).enqueue(session, 17)
        index.options(delay=120, queue="slow").enqueue(session, 17)
        assert timedelta(seconds=119) < job.run_at - job.created_at < timedelta(seconds=180)
        assert (job.queue, job.state) == ("slow", "scheduled")
        at = datetime.now(UTC) + timedelta(seconds=30)
        index.options(run_at=at).enqueue(session, 17)
        assert job.run_at == at
        index.enqueue(session, 17)
        assert job.state == "queued"

    @pytest.mark.parametrize("later", [{"delay": 6000}, {"run_at": PARKED}])
    def test_max_delay_counts_from_the_first_enqueue(self, session: Session, later: Any) -> None:
        job = index.options(delay=60).enqueue(session, 17)
        index.options(**later).enqueue(session, 17)
        assert job.run_at - job.created_at == timedelta(seconds=600)

    def test_one_that_is_queued_keeps_its_place_from_then_on(self, session: Session) -> None:
        job = index.enqueue(session, 17)
        place = job.position
        index.enqueue(session, 17)
        assert job.position > place
        place = job.position
        self.age(session, job, 601)
        later: list[Any] = [{}, {"delay": 60}]
        for options in later:
            index.options(**options).enqueue(session, 17, "b")
            assert (job.state, job.position, job.args["note"]) == ("queued", place, "b")

    def test_one_that_is_due_and_not_queued_yet_is_left_to_the_promotion(self, session: Session) -> None:
        """Which tells workers of it."""
        job = index.options(delay=60).enqueue(session, 17)
        place = job.position
        self.age(session, job, 601)
        index.options(delay=60).enqueue(session, 17)
        assert job.state == "scheduled"
        assert job.position > place

    def test_one_that_keeps_its_place_in_an_ordered_key_keeps_it_in_another_queue(self, session: Session) -> None:
        job = export.enqueue(session, 17)
        place = job.position
        self.age(session, job, 601)
        export.options(queue="other").enqueue(session, 17)
        assert job.position == place

    @staticmethod
    def age(session: Session, job: JobMixin, seconds: int) -> None:
        session.execute(update(MyJob).where(MyJob.id == job.id).values(created_at=func.now() - timedelta(0, seconds)))
        session.expire_all()


class TestPeriods:
    def test_the_next_period_has_one_more(self, session: Session) -> None:
        job = welcome.enqueue(session, 17)
        self.let_pass(session)
        assert welcome.enqueue(session, 17) is job, "the job of the last one is still live"
        set_state(session, job, "succeeded")
        assert welcome.enqueue(session, 17) is not job

    @staticmethod
    def let_pass(session: Session) -> None:
        session.execute(update(MyJob).values(unique_period=MyJob.unique_period - timedelta(days=36500)))
        session.expire_all()

    def test_periods_begin_where_the_servers_clock_says(self, session: Session) -> None:
        hourly = plain.options(unique=Unique("account", per=3600)).enqueue(session, 1)
        expected = session.scalar(select(func.date_trunc("hour", func.clock_timestamp(), "UTC")))
        assert hourly.unique_period == expected

    @pytest.mark.parametrize("state", ["scheduled", "queued", "running"])
    def test_a_live_job_goes_before_one_of_the_period_that_ended(self, session: Session, state: str) -> None:
        once = plain.options(unique_key="k", unique=Unique(per=timedelta(days=36500)))
        ended = once.enqueue(session, 1)
        set_state(session, ended, "succeeded")
        live = plain.options(unique_key="k").enqueue(session, 1)
        set_state(session, live, state)
        set_state(session, ended, "failed")  # now it comes later in the table
        assert once.enqueue(session, 1) is live


class TestMany:
    def test_raise_names_a_key_that_two_items_have(self, session: Session) -> None:
        with pytest.raises(ArgumentsError, match=r'"account":3'):
            close.enqueue_many(session, [{"account": 3}, {"account": 3}])
        assert notes(session) == []

    @pytest.mark.parametrize("task", [bill, index])
    def test_the_id_of_each_item_is_that_of_the_job_which_has_its_key(self, session: Session, task: Any) -> None:
        there = task.enqueue(session, account=1)
        session.flush()
        ids = task.enqueue_many(session, ({"account": n} for n in (2, 1, 3, 2)), returning=True)
        assert [session.get_one(MyJob, job_id).args["account"] for job_id in ids] == [2, 1, 3, 2]
        assert (ids[0], ids[1]) == (ids[3], there.id)

    def test_many_batches_are_one_call(self, session: Session) -> None:
        many = plain.options(unique=Unique("account"))
        assert many.enqueue_many(session, ({"account": n} for n in range(6000))).inserted == 6000
        again = many.enqueue_many(session, ({"account": n} for n in range(1000, 7000)))
        assert (again.inserted, again.skipped) == (1000, 5000)


def test_a_job_that_is_held_is_locked_and_rows_may_refer_to_it(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session, Session(engine) as other:
        plain.options(unique_key="k").enqueue(session, 1)
        session.commit()
        assert unique_jobs(session).hold(["k"]) != {}
        assert other.execute(text("SELECT FROM sqla_jobs FOR NO KEY UPDATE SKIP LOCKED")).all() == []
        other.execute(text("SELECT FROM sqla_jobs FOR KEY SHARE NOWAIT"))


def test_an_application_that_has_a_unique_column_of_its_own_hears_of_it(engine: Engine) -> None:
    class OwnBase(DeclarativeBase):
        pass

    class OwnJob(JobMixin):
        number: Mapped[str | None] = mapped_column(Text, unique=True)

    own = Jobs(OwnBase, job_class=OwnJob)
    task = own.task(unique=Unique("account", per=3600))(lambda_like)
    OwnBase.metadata.create_all(engine)
    with Session(engine) as session:
        task.options(columns={"number": "1"}).enqueue(session, 1)
        with pytest.raises(IntegrityError, match="number"):
            task.options(columns={"number": "1"}).enqueue(session, 2)


@pytest.mark.parametrize("task", [index, welcome], ids=lambda task: str(task.name))
def test_each_policy_finds_its_rows_by_an_index(session: Session, task: Any) -> None:
    """Also where there are many jobs, and one statement is sent again and again."""
    session.execute(
        text(
            "INSERT INTO sqla_jobs (task, args, state) SELECT 'plain', '{\"account\": 1}', 'succeeded' "
            "FROM generate_series(1, 20000)"
        )
    )
    session.execute(text("ANALYZE sqla_jobs"))
    before = scanned(session)
    for number in range(20):
        task.enqueue(session, number % 2)
    task.enqueue_many(session, [{"account": number} for number in range(10)])
    assert scanned(session) - before == 0


def scanned(session: Session) -> int:
    return session.scalar(text("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'sqla_jobs'")) or 0
