"""What people do to jobs and queues, in a transaction of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Session
from tenacity import Retrying, stop_after_attempt

from sqla_jobs import ArgumentsError, Changed, JobMixin, Jobs, JobState, UnknownJob, UnknownTask
from sqla_jobs.queries import Queries
from sqla_jobs.testing import drain, make_job

WAITING, ENDED = ["scheduled", "queued"], ["succeeded", "failed", "cancelled"]


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
ran: list[int] = []


@jobs.task(queue="mail", aliases=["old.note"])
def note(number: int) -> None:
    ran.append(number)


@jobs.task(max_attempts=2, retry=Retrying(stop=stop_after_attempt(2)))
def fail() -> None:
    raise ValueError("no")


@jobs.task
def other() -> None:
    pass


@pytest.fixture(scope="module")
def tables(module_engine: Engine) -> Engine:
    Base.metadata.create_all(module_engine)
    jobs.bind(module_engine)
    return module_engine


@pytest.fixture
def session(tables: Engine) -> Iterator[Session]:
    """A session that is rolled back at the end."""
    ran.clear()
    with Session(tables) as session:
        yield session


def in_state(session: Session, state: str, **values: Any) -> JobMixin:
    return make_job(session, note.options(queue="mail"), state=JobState(state), args={"number": 1}, **values)


def as_job(job: JobMixin) -> JobMixin:
    return job


def as_id(job: JobMixin) -> int:
    return job.id


either = pytest.mark.parametrize("named", [as_job, as_id])


def now(session: Session) -> datetime:
    time: datetime = session.scalars(select(func.clock_timestamp())).one()
    return time


class TestCancel:
    @either
    @pytest.mark.parametrize("state", WAITING)
    def test_a_waiting_job_ends_cancelled_and_does_not_run(
        self, session: Session, state: str, named: Callable[[JobMixin], Any]
    ) -> None:
        job = in_state(session, state)
        note.enqueue(session, 2)
        before = now(session)
        assert jobs.cancel(session, named(job))
        assert job.state == "cancelled"
        assert job.finished_at is not None
        assert before <= job.finished_at <= now(session)
        assert drain(session, jobs).runs == 1, "only that job is cancelled"

    @either
    def test_a_running_job_is_asked_to_end_and_asked_once(
        self, session: Session, named: Callable[[JobMixin], Any]
    ) -> None:
        job = in_state(session, "running")
        lease = job.current_run_id
        assert jobs.cancel(session, named(job))
        asked = job.cancel_requested_at
        assert asked is not None
        assert (job.state, job.finished_at, job.current_run_id) == ("running", None, lease)
        assert jobs.cancel(session, named(job))
        assert job.cancel_requested_at == asked


class TestRetry:
    def test_a_job_that_used_all_its_attempts_gets_one_more(self, session: Session) -> None:
        job = fail.enqueue(session)
        assert drain(session, jobs, ahead=60, errors="record").runs == 2
        assert (job.state, job.attempt, job.max_attempts) == ("failed", 2, 2)
        assert jobs.retry(session, job)
        assert (job.state, job.attempt, job.max_attempts, job.finished_at) == ("queued", 2, 3, None)
        assert drain(session, jobs, errors="record").runs == 1
        assert [run.outcome for run in job.runs] == ["retried", "failed", "failed"]
        assert [run.attempt for run in job.runs] == [1, 2, 3]

    @either
    @pytest.mark.parametrize("state", [*ENDED, "scheduled"])
    def test_it_runs_at_once_behind_those_that_wait(
        self, session: Session, state: str, named: Callable[[JobMixin], Any]
    ) -> None:
        job = in_state(session, state, run_at=func.now() + func.make_interval(1), cancel_requested_at=func.now())
        note.enqueue(session, 2)
        assert jobs.retry(session, named(job))
        assert (job.state, job.cancel_requested_at) == ("queued", None)
        assert job.run_at <= now(session)
        assert job.max_attempts == 25
        drain(session, jobs)
        assert ran == [2, 1]

    def test_a_job_whose_key_another_live_job_has_is_left_alone(self, session: Session) -> None:
        old = in_state(session, "failed", unique_key="k")
        live = note.options(unique_key="k").enqueue(session, 2)
        assert jobs.retry(session, old) == Changed(seen=1, changed=0, left=(old.id,))
        assert old.state == "failed"
        jobs.cancel(session, live)
        assert jobs.retry(session, old)


@pytest.mark.parametrize("action", [jobs.cancel, jobs.retry])
class TestBoth:
    def test_an_unknown_id_is_an_error(self, session: Session, action: Callable[..., bool]) -> None:
        with pytest.raises(UnknownJob, match="there is no job 4711; it may have been pruned"):
            action(session, 4711)

    @pytest.mark.parametrize("wrong", ["1", None])
    def test_what_names_no_job_is_refused(self, session: Session, action: Callable[..., bool], wrong: Any) -> None:
        with pytest.raises(ArgumentsError, match=r"neither|takes either"):
            action(session, wrong)

    def test_nothing_is_changed_where_the_caller_rolls_back(self, tables: Engine, action: Callable[..., bool]) -> None:
        with Session(tables) as session:
            job = in_state(session, "scheduled")
            session.commit()
            assert action(session, job)
            session.rollback()
            assert job.state == "scheduled"
            session.delete(job)
            session.commit()

    def test_what_the_caller_changed_on_the_job_is_kept(self, session: Session, action: Callable[..., bool]) -> None:
        job = in_state(session, "scheduled")
        with session.no_autoflush:
            job.priority = 9
            action(session, job)
            assert job.priority == 9
        session.flush()
        session.refresh(job)
        assert job.priority == 9


class TestWhere:
    """Changes to all jobs of a selection, in the caller's transaction."""

    @pytest.mark.parametrize("given", [{"tasks": []}, {"states": ()}, {"queues": []}, {"args": {}}])
    def test_an_empty_list_does_not_select_everything(self, given: dict[str, Any]) -> None:
        with pytest.raises(ArgumentsError, match=next(iter(given))):
            jobs.select(**given)

    def test_each_change_touches_what_is_selected_and_names_what_it_leaves(self, session: Session) -> None:
        failed, queued = in_state(session, "failed"), in_state(session, "queued")
        live, dead = in_state(session, "running"), in_state(session, "succeeded")
        others = jobs.select(queues=["elsewhere"])
        for change in (jobs.retry, jobs.cancel, jobs.delete, jobs.erase):
            assert change(session, where=others) == Changed()
        assert jobs.move(session, where=jobs.select(states=["queued"]), queue="slow", priority=3) == Changed(1, 1)
        assert (queued.queue, queued.priority) == ("slow", 3)
        assert jobs.reschedule(session, where=jobs.select(tasks=["note"], queues=["slow"]), delay=3600)
        assert (queued.state, queued.run_at > now(session)) == ("scheduled", True)
        assert jobs.erase(session, where=jobs.select(text="number")) == Changed(4, 2, (queued.id, live.id))
        assert (failed.args, dead.args) == ({"(erased)": True}, {"(erased)": True})
        assert jobs.retry(session, where=jobs.select(queues=["mail"])) == Changed(1, 0, (failed.id,))
        assert jobs.cancel(session, where=jobs.select()) == Changed(2, 2)
        assert jobs.delete(session, where=jobs.select()) == Changed(3, 3)
        assert session.scalars(select(jobs.Job.id)).all() == [live.id]

    def test_retries_are_spread_the_oldest_first(self, session: Session) -> None:
        first, last = in_state(session, "failed"), in_state(session, "failed")
        assert jobs.retry(session, where=jobs.select(states=["failed"]), over=timedelta(hours=2)).changed == 2
        assert (first.state, last.state) == ("scheduled", "scheduled")
        assert last.run_at - first.run_at == pytest.approx(timedelta(hours=1), abs=timedelta(seconds=5))

    def test_a_batch_is_moved_and_rescheduled_as_one(self, session: Session) -> None:
        batch = jobs.batch(session)
        job = note.options(batch=batch).enqueue(session, 1)
        later = datetime(2999, 1, 1, tzinfo=UTC)
        assert jobs.move(session, batch, priority=2) == jobs.reschedule(session, batch, run_at=later) == Changed(1, 1)
        assert (job.priority, job.run_at) == (2, later)
        assert jobs.cancel(session, where=jobs.select(batch=batch)) == Changed(1, 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda session: jobs.select(states=["done"]),
            lambda session: jobs.select(tasks="note"),
            lambda session: jobs.select(ended_before=datetime(2030, 1, 1)),  # noqa: DTZ001
            lambda session: jobs.select(batch=jobs.batch(session)),
            jobs.retry,
            lambda session: jobs.retry(session, 1, where=jobs.select()),
            lambda session: jobs.retry(session, where=jobs.select(), over=-1),
            lambda session: jobs.move(session, 1),
            lambda session: jobs.move(session, 1, priority=11),
            lambda session: jobs.reschedule(session, 1),
            lambda session: jobs.reschedule(session, 1, delay=-1),
            lambda session: jobs.reschedule(session, 1, run_at=datetime(2030, 1, 1)),  # noqa: DTZ001
        ],
    )
    def test_what_makes_no_sense_is_refused(self, session: Session, wrong: Callable[[Session], object]) -> None:
        with pytest.raises(ArgumentsError):
            wrong(session)


class TestPause:
    def test_a_pause_that_is_rolled_back_pauses_nothing(self, session: Session) -> None:
        jobs.pause(session, "mail")
        note.enqueue(session, 1)
        assert drain(session, jobs).runs == 0
        session.rollback()
        note.enqueue(session, 1)
        assert drain(session, jobs).runs == 1

    @pytest.mark.parametrize("names", [{"task": "note"}, {}], ids=["task", "queue"])
    def test_what_is_paused_until_later_is_not_due_and_then_it_is(self, session: Session, names: Any) -> None:
        ran.clear()
        note.enqueue(session, 1)
        queries, named = Queries(jobs._models), (["mail"], ["note"])
        where = [] if names else ["mail"]
        jobs.pause(session, *where, **names, until=timedelta(hours=1))
        assert (queries.poll(session, *named).is_more, queries.is_due(session, *named)) == (False, False)
        for row in (jobs.Queue, jobs.PausedTask):
            session.execute(update(row).values(paused_until=func.clock_timestamp() - timedelta(seconds=1)))
        assert (queries.poll(session, *named).is_more, queries.is_due(session, *named)) == (True, True)
        assert drain(session, jobs).runs == 1

    def test_a_second_pause_has_a_reason_and_an_end_of_its_own_and_the_time_of_the_first(
        self, session: Session
    ) -> None:
        jobs.pause(session, "mail", reason="first", until=timedelta(hours=1))
        row = session.get_one(jobs.Queue, "mail")
        first = row.paused_at
        assert (row.pause_reason, row.paused_until is None) == ("first", False)
        jobs.pause(session, "mail")
        session.refresh(row)
        assert (row.pause_reason, row.paused_until, row.paused_at) == (None, None, first)

    def test_an_end_or_a_reason_that_cannot_be_is_refused(self, session: Session) -> None:
        years = (datetime(2030, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), datetime(9500, 1, 1, tzinfo=UTC))  # noqa: DTZ001
        wrong: list[tuple[str, Any]] = [("until", until) for until in (*years, timedelta(0))]
        for name, value in (*wrong, ("reason", "x" * 1001), ("reason", "a\x00")):
            with pytest.raises(ArgumentsError, match=name):
                jobs.pause(session, "mail", **{name: value})
        assert session.scalars(select(jobs.Queue)).all() == []

    @pytest.mark.slow
    def test_no_job_of_a_paused_task_is_claimed_whatever_its_name_until_it_is_resumed(self, engine: Engine) -> None:
        Base.metadata.create_all(engine)
        ran.clear()
        queues = {"mail": 1, "default": 1}
        with Session(engine) as session:
            note.enqueue(session, 1)
            session.execute(insert(jobs.Job).values(task="old.note", args={"number": 2}))
            other.enqueue(session)
            jobs.pause(session, task=note)
            jobs.worker(queues, bind=engine).drain()  # before the pause commits nothing is there, and nothing paused
            session.commit()
            assert jobs.worker(queues, bind=engine).drain() == 1
            assert ran == []
            jobs.resume(session, task="old.note")
            session.commit()
            assert jobs.worker(queues, bind=engine).drain() == 2
            assert sorted(ran) == [1, 2]

    @pytest.mark.parametrize("action", [jobs.pause, jobs.resume])
    def test_a_task_that_nobody_knows_is_refused(self, session: Session, action: Callable[..., None]) -> None:
        with pytest.raises(UnknownTask, match=r"no task is named 'ntoe'.*did you mean 'note'"):
            action(session, task="ntoe")
        for queue in ((), ("a,b",), (5,)):
            with pytest.raises(ArgumentsError):
                action(session, *queue)
        with pytest.raises(ArgumentsError):
            action(session, "mail", task="note")
        assert session.scalars(select(jobs.PausedTask)).all() == []
