"""Flask: an application context for each run, and `db.session` inside it is the run's own."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask, current_app, g
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConfigurationError, Jobs, RunContext, RunEvent
from sqla_jobs.flask import FlaskJobs
from sqla_jobs.queries import RunEnd
from sqla_jobs.queries.succeed import SucceedOne
from sqla_jobs.testing import drain, run_job
from tests.flask_shop import Shop, build
from tests.helpers import wait_until

pytestmark = pytest.mark.slow
KINDS = ["sqlalchemy", "lite", "scoped"]


@pytest.fixture
def shop(request: pytest.FixtureRequest, database_url: str) -> Iterator[Shop]:
    """A shop with its tables; outside of its context. On Flask-SQLAlchemy, unless the test says another kind."""
    shop = build(getattr(request, "param", "sqlalchemy"), database_url)
    with shop.tables():
        yield shop


def ended(shop: Shop, session: Session, name: str, **arguments: Any) -> Any:
    """A job of that task, after a worker has run it."""
    job = shop.jobs.tasks[name].enqueue(session, **arguments)
    session.commit()
    shop.jobs.worker().drain()
    session.refresh(job)
    return job


def effects(shop: Shop, session: Session) -> list[int]:
    session.rollback()
    return list(session.scalars(select(shop.Effect.n).order_by(shop.Effect.n)))


@pytest.mark.parametrize("shop", KINDS, indirect=True)
def test_what_a_helper_writes_through_its_own_session_is_in_the_fenced_commit(shop: Shop, session: Session) -> None:
    job = ended(shop, session, "record", n=1)
    assert (job.state, job.runs[0].result, job.runs[0].error) == ("succeeded", "tests.flask_shop", None)
    assert effects(shop, session) == [1]


def test_worker_contexts_are_entered_and_left_inside_an_application_context(shop: Shop, session: Session) -> None:
    life = list[str]()

    @shop.jobs.worker_context
    @contextmanager
    def names() -> Generator[list[str]]:
        life.append(current_app.name)
        yield life
        life.append(current_app.name)

    @shop.jobs.task(name="uses")
    def uses(run: RunContext) -> int:
        return len(run.resources[list])

    assert ended(shop, session, "uses").runs[0].result == 1
    assert life == ["tests.flask_shop"] * 2


@pytest.mark.parametrize("shop", ["sqlalchemy", "scoped"], indirect=True)
def test_it_is_rolled_back_when_its_end_cannot_be_stored(
    shop: Shop, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = shop.jobs.tasks["record"].enqueue(session, n=1)
    session.commit()
    worker = shop.jobs.worker(clock=False)

    plain = SucceedOne.parameters

    def of_another_run(end: RunEnd) -> dict[str, Any]:
        return plain(end) | {"lease_run_id": end.lease.run_id + 1}

    monkeypatch.setattr(SucceedOne, "parameters", of_another_run)
    worker.start()
    wait_until(lambda: shop.teardowns[2:])  # the engine, the isolation level, the run
    worker.stop()
    assert "LeaseLost" in repr(shop.teardowns[2])
    assert effects(shop, session) == []
    session.refresh(job)
    assert (job.state, job.attempt) == ("scheduled", 1), "its lease stands, so the attempt counts"


def test_g_is_fresh_for_each_run_even_after_one_that_leaves_a_context_open(shop: Shop, session: Session) -> None:
    for n in range(3):
        shop.jobs.tasks["leave_open"].enqueue(session, n=n)
    session.commit()
    shop.jobs.worker(["default"], concurrency=1).drain()
    assert list(session.scalars(select(shop.jobs.Run.result))) == [True] * 3


def test_a_teardown_that_raises_costs_no_outcome_and_no_connection(
    shop: Shop, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    armed: list[object] = []

    @shop.app.teardown_appcontext
    def break_down(error: BaseException | None) -> None:
        if armed:
            raise RuntimeError("broken teardown")

    for n in (1, 3):
        shop.jobs.tasks["commit"].enqueue(session, n=n)
        shop.jobs.tasks["record"].enqueue(session, n=10 * n)
    failing = shop.jobs.tasks["fail"].enqueue(session, n=5)
    worker = shop.jobs.worker(clock=False)
    with shop.app.app_context():
        engine = shop.engine()
    with worker:
        armed.append(1)
        session.commit()
        while session.scalar(select(func.count()).select_from(shop.jobs.Run)) != 6:
            session.rollback()
    armed.clear()
    outcomes = sorted(session.scalars(select(shop.jobs.Run.outcome)))
    assert outcomes == ["failed", "retried", *["succeeded"] * 4]
    session.refresh(failing)
    assert failing.runs[-1].error == "after the write"
    assert effects(shop, session) == [1, 3, 10, 30]
    assert sum("broken teardown" in record.getMessage() for record in caplog.records) == 6
    gc.collect()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("shop", ["sqlalchemy", "scoped"], indirect=True)
def test_enqueued_in_a_request_it_is_committed_or_rolled_back_with_it(shop: Shop, session: Session) -> None:
    client = shop.app.test_client()
    for how in ("error", "nothing", "commit"):
        client.post(f"/?how={how}")
    assert session.scalar(select(func.count()).select_from(shop.jobs.Job)) == 1
    assert shop.jobs.worker().drain() == 1
    assert effects(shop, session) == [1, 2]


@pytest.mark.parametrize("shop", ["sqlalchemy", "scoped"], indirect=True)
def test_runs_of_a_test_have_a_context_each_in_which_its_session_is_that_of_the_application(
    shop: Shop, session: Session
) -> None:
    heard: list[str] = []

    @shop.jobs.on("succeeded")
    def hear(event: RunEvent) -> None:
        heard.append(current_app.name)

    @shop.jobs.task(name="fresh")
    def fresh(session: Session, n: int) -> bool:
        g.seen = [*g.get("seen", []), n]
        shop.session().add(shop.Effect(n=n))
        return shop.session() is session and g.seen == [n]

    is_by_thread = "sqlalchemy" not in shop.app.extensions
    mine = shop.session() if is_by_thread else None
    written = [fresh.enqueue(session, n=n) for n in (1, 2)]
    assert drain(session, shop.jobs).runs == 2
    assert [job.runs[0].result for job in written] == [True, True]
    assert run_job(session, fresh)(n=3) is True
    assert heard == ["tests.flask_shop"] * 3
    assert len(shop.teardowns) == 6
    assert [*session.scalars(select(shop.Effect.n).order_by(shop.Effect.n))] == [1, 2, 3]
    assert not is_by_thread or shop.session() is mine
    session.rollback()
    assert effects(shop, session) == []


@pytest.mark.parametrize("shop", KINDS, indirect=True)
def test_its_commands_run_in_tests(shop: Shop, session: Session) -> None:
    runner = shop.app.test_cli_runner()
    done = runner.invoke(args=["jobs", "enqueue", "record", '{"n": 1}'])
    assert (done.exit_code, done.stdout) == (0, f"{session.scalar(select(shop.jobs.Job.id))}\n")
    assert '"record"' in runner.invoke(args=["jobs", "list", "--json"]).stdout
    assert runner.invoke(args=["jobs", "status", "--json"]).exit_code == 0


@pytest.mark.parametrize("shop", ["sqlalchemy", "lite"], indirect=True)
def test_its_session_is_that_of_a_test_which_rolls_back(
    shop: Shop, session: Session, sqla_jobs_flask: Callable[[Flask], Flask], sqla_jobs_session: Session
) -> None:
    connection = sqla_jobs_session.connection()
    connection.execute(text("DROP TABLE effects"))  # that of another application
    shop.Effect.__table__.create(connection)
    client = sqla_jobs_flask(shop.app).test_client()
    assert [client.post(f"/?how={how}").status_code for how in ("error", "commit")] == [500, 200]
    assert sqla_jobs_session.scalar(select(func.count()).select_from(shop.jobs.Job)) == 1
    assert "record" in shop.app.test_cli_runner().invoke(args=["jobs", "list"]).stdout
    assert effects(shop, session) == []


class TestWhichApplication:
    """`Jobs` are made once, applications by a factory."""

    @pytest.fixture
    def jobs(self) -> Jobs[Any]:
        class Base(DeclarativeBase): ...

        jobs = Jobs(Base)

        @jobs.task(name="where")
        def where(session: Session) -> str:
            return str(current_app.config["NAME"])

        return jobs

    def app(self, name: str, **config: Any) -> Flask:
        app = Flask("somewhere")
        app.config.update(NAME=name, **config)
        return app

    @pytest.mark.parametrize("is_shared", [True, False])
    def test_it_is_that_in_whose_context_the_worker_is_made(
        self, jobs: Jobs[Any], engine: Engine, is_shared: bool
    ) -> None:
        jobs.Job.metadata.create_all(engine)
        shared = FlaskJobs(jobs, bind=engine)
        apps = [self.app("one"), self.app("two")]
        for app in apps:
            (shared if is_shared else FlaskJobs(jobs, bind=engine)).init_app(app)
        with Session(engine) as session:
            for app in apps:
                job = jobs.tasks["where"].enqueue(session)
                session.commit()
                with app.app_context():
                    worker = jobs.worker(clock=False)
                worker.drain()
                session.refresh(job)
                assert job.runs[0].result == app.config["NAME"]
        with pytest.raises(ConfigurationError, match="2 applications"):
            jobs.worker(clock=False)
        with Session(engine) as session:  # a test takes the one that it made last
            assert run_job(session, jobs.tasks["where"])() == "two"
            with apps[0].app_context():
                assert run_job(session, jobs.tasks["where"])() == "one"
        apps[1].extensions["sqla_jobs"].use(apps[1])
        assert jobs.worker(clock=False)

    def test_without_a_database_it_says_what_to_do(self, jobs: Jobs[Any], engine: Engine) -> None:
        app = self.app("one")
        FlaskJobs(jobs, app)
        with pytest.raises(ConfigurationError, match="bind="):
            jobs.worker(clock=False)
        jobs.bind(engine)
        assert jobs.worker(clock=False)


def test_each_run_is_inside_a_context_of_the_application_too(database_url: str) -> None:
    runs: list[tuple[str, str, str]] = []

    @contextmanager
    def context(run: RunContext | None) -> Generator[None]:
        assert run is not None
        try:
            yield
        except ValueError as error:
            runs.append((current_app.name, run.task, str(error)))
            raise

    app, db = Flask("shop"), SQLAlchemy(model_class=DeclarativeBase)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(app)
    jobs = Jobs(db.Model)
    FlaskJobs(jobs, app, context=context)

    @jobs.task(name="fail", max_attempts=1)
    def fail(session: Session) -> None:
        assert session is db.session()
        raise ValueError("as always")

    with app.app_context():
        db.create_all()
        fail.enqueue(db.session)
        db.session.commit()
        jobs.worker(concurrency=1).drain()
        db.engine.dispose()
    assert runs == [("shop", "fail", "as always")]


def test_coroutine_tasks_have_contexts_and_asynchronous_sessions(shop: Shop, session: Session) -> None:
    @shop.jobs.task(name="tell")
    async def tell(session: AsyncSession, n: int) -> list[Any]:
        g.n = n
        session.add(shop.Effect(n=n))
        await session.flush()
        await asyncio.sleep(0.05)
        return [current_app.name, g.n]

    tell.enqueue_many(session, ({"n": n} for n in range(20)))
    session.commit()
    shop.jobs.worker({"default": 10}).drain()
    results = session.scalars(select(shop.jobs.Run.result)).all()
    assert sorted(results) == [["tests.flask_shop", n] for n in range(20)]
    assert effects(shop, session) == list(range(20))
    assert shop.teardowns == [None] * len(shop.teardowns)
