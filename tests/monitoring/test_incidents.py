"""Incidents: `doctor`, `status` and `why` show the cause and the remedy of each."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs, RateLimit, Unique
from sqla_jobs.cli.main import main
from sqla_jobs.monitoring.check import SECONDS
from sqla_jobs.monitoring.status import read_status
from sqla_jobs.worker import event_loop
from tests.helpers import wait_until
from tests.pooler import pgbouncer
from tests.programs import PGBOUNCER


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "stock"
    id: Mapped[int] = mapped_column(primary_key=True)
    pieces: Mapped[int]


jobs = Jobs(Base)


@jobs.task
def take(session: Session, item: int) -> None:
    session.execute(text("UPDATE stock SET pieces = pieces - 1 WHERE id = :item"), {"item": item})


@jobs.task(limits=RateLimit(3, per=60), retry=Retrying(wait=wait_fixed(0)))
def remind(customer: int) -> None:
    raise ConnectionError("no answer")


@jobs.task(unique=Unique(on_conflict="replace", max_delay=None))
def index(page: str) -> None: ...


seen = threading.Event()


@jobs.task
async def stare() -> None:
    seen.wait(20)


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def doctor() -> dict[str, tuple[str, str]]:
    """Return the warnings of `doctor`: for each subject, the finding and the remedy."""
    done = CliRunner().invoke(main, ["doctor", "--json", "--app", f"{__name__}:jobs"])
    assert done.exit_code == 0, done.output
    return {one["about"]: (one["found"], one["remedy"]) for one in json.loads(done.stdout) if one["verdict"] != "ok"}


def warned(session: Session, about: str) -> bool:
    """Return whether `status` warns about a subject."""
    return any(one.about == about for one in read_status(afresh(session), jobs).warnings)


def afresh(session: Session) -> Session:
    """Return the session in a new transaction, with all rows expired."""
    session.rollback()
    return session


def state_of(session: Session, job_id: int) -> str:
    return str(afresh(session).scalar(text("SELECT state FROM sqla_jobs WHERE id = :id"), {"id": job_id}))


class TestEverySlotWaitsForOneRow:
    @pytest.fixture
    def holder(self, database: Engine) -> Iterator[int]:
        """The pid of an idle session that has locked the row."""
        with database.begin() as connection:
            connection.execute(text("INSERT INTO stock VALUES (1, 9)"))
        with Session(database) as holder:
            holder.execute(text("SELECT FROM stock FOR UPDATE"))
            yield holder.scalar(text("SELECT pg_backend_pid()")) or 0
            holder.invalidate()

    @pytest.fixture
    def waiting(
        self, database: Engine, session: Session, holder: int, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[int]:
        """The id of a waiting job, while running jobs wait for the row."""
        monkeypatch.setitem(SECONDS, "blocked", 0.1)
        made = [take.enqueue(session, item=1) for _ in range(2)]
        session.commit()
        with jobs.worker({"default": 2}, clock=False):
            try:
                wait_until(lambda: {state_of(session, one.id) for one in made} == {"running"})
                last = take.enqueue(session, item=1)
                session.commit()
                wait_until(lambda: "2 sessions are waiting" in doctor().get("running jobs", ("",))[0])
                yield last.id
            finally:
                session.rollback()
                session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": holder})

    @pytest.mark.slow
    def test_who_holds_it_is_told(self, session: Session, holder: int, waiting: int) -> None:
        found, remedy = doctor()["running jobs"]
        assert all(said in found for said in ("2 sessions", "job 1 (take), job 2 (take)", f"pid {holder} of ", "idle"))
        assert remedy.endswith(f"SELECT pg_terminate_backend({holder})")
        assert warned(session, "running jobs")
        _, why = jobs.why(session, 1)
        assert "possibly the session of this job" in why
        assert f"SELECT pg_terminate_backend({holder})" in why
        _, slots, why = jobs.why(session, waiting)
        assert "2 slots" in slots
        assert "job 1 (take)" in slots
        assert f"SELECT pg_terminate_backend({holder})" in why


@pytest.mark.slow
def test_a_rate_that_failing_attempts_use_up_is_told_with_their_task(database: Engine, session: Session) -> None:
    remind.enqueue(session, customer=1)
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: session.scalar(text("SELECT count(*) FROM sqla_runs")) == 3)
        made = [remind.enqueue(session, customer=n) for n in range(4)]
        session.commit()
        wait_until(lambda: state_of(session, 1) == "queued")
    found, remedy = doctor()["rate remind"]
    assert "3 of these starts failed: job 1 of remind, and 5 jobs are waiting" in found
    assert "sqla-jobs cancel 1" in remedy
    assert warned(session, "rate remind")
    with jobs.worker(["other"], clock=False):
        told = jobs.why(session, made[0])
    assert any(said.endswith("3 of these starts failed: job 1 of remind.") for said in told), told


class TestAUniqueJobFarAhead:
    def test_it_is_reported_with_the_enqueues_that_it_answers(self, database: Engine, session: Session) -> None:
        job = take.options(unique_key="sync", delay=30 * 86400).enqueue(session, item=1)
        near = take.options(unique_key="near", delay=7200).enqueue(session, item=1)
        session.commit()
        found, remedy = doctor()[f"job {job.id}"]
        assert "keeps its unique key" in found
        assert f"sqla-jobs cancel {job.id} frees its key" in remedy
        assert f"job {near.id}" not in doctor()
        assert any("unique key" in one for one in jobs.why(session, near))
        CliRunner().invoke(main, [*remedy.split(" runs")[0].split()[1:], "--yes", "--app", f"{__name__}:jobs"])
        assert state_of(session, job.id) == "queued"


def test_a_debounce_that_never_ends_is_reported(database: Engine, session: Session) -> None:
    job = index.options(delay=60).enqueue(session, page="/")
    for _ in range(3):
        session.commit()
        index.options(delay=60).enqueue(session, page="/")
    session.commit()
    assert f"job {job.id}" not in doctor()
    session.execute(text("UPDATE sqla_jobs SET created_at = created_at - interval '3 h'"))
    session.commit()
    assert "3 enqueues with its unique key replaced it" in doctor()[f"job {job.id}"][0]
    assert warned(session, f"job {job.id}")
    assert "3 enqueues of its unique key have replaced it" in jobs.why(session, job)[1]


def test_a_schedule_of_an_undeclared_task_is_reported(database: Engine, session: Session) -> None:
    session.add(jobs.Schedule(name="night run", task="tkae", cron="0 3 * * *"))
    session.commit()
    assert doctor()["schedule night run"][1].endswith("sqla-jobs schedule set 'night run' --disable")
    assert warned(session, "schedule night run")
    CliRunner().invoke(main, ["schedule", "set", "night run", "--disable", "--app", f"{__name__}:jobs"])
    assert "schedule night run" not in doctor()


def test_a_blocked_event_loop_is_reported_with_the_line(
    database: Engine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loop, "_BLOCKED", 0.1)
    job = stare.enqueue(session)
    session.commit()
    with jobs.worker(clock=False):
        shown = text("SELECT count(*) FROM sqla_processes WHERE set_aside ? 'event loop'")
        wait_until(lambda: afresh(session).scalar(shown))
        ((found, remedy),) = [told for about, told in doctor().items() if "event loop" in about]
        assert (match := re.search(r"File \".*test_incidents\.py\", line \d+, in stare", found)), found
        assert "asyncio.to_thread" in remedy
        assert match[0] in jobs.why(session, job)[1]
        assert any("event loop" in one.about for one in read_status(session, jobs).warnings)
        seen.set()
    assert not any("event loop" in about for about in doctor())


@pytest.mark.slow
@pytest.mark.needs(PGBOUNCER)
def test_a_pooler_that_is_too_small_is_reported(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECONDS, "pooled", 0.0)
    with pgbouncer(database.url, pool_size=1, patience=1) as pooled:
        jobs.bind(pooled)
        assert "default_pool_size" in doctor()["pooler"][1]
        with pooled.connect() as connection:
            connection.execute(text("SELECT 1"))
            done = CliRunner().invoke(main, ["status", "--app", f"{__name__}:jobs"])
    jobs.bind(database)
    assert (done.exit_code, "query_wait_timeout" in done.stderr) == (1, True)
    assert "pooler" not in doctor()
