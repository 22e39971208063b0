"""Context managers around the life of a worker, and the resources that tasks get from them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import AsyncRunContext, ConfigurationError, DeclarationError, Jobs, RunContext
from sqla_jobs.testing import drain, run_job
from tests.conftest import StartWorker
from tests.helpers import states, wait_until


@dataclass
class Client:
    """What a worker context yields; `is_open` between enter and exit."""

    is_open: bool = True


class AsyncClient(Client):
    """The same, made in an event loop."""

    loop: object = None
    task: object = None


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
life: list[str] = []
seen: list[Client] = []
tenant: ContextVar[str] = ContextVar("tenant", default="none")


@pytest.fixture
def application() -> Jobs[Any]:
    life.clear()
    seen.clear()
    return jobs


@jobs.worker_context
@contextmanager
def client() -> Generator[Client]:
    life.append("client opens")
    token = tenant.set("acme")
    made = Client()
    yield made
    made.is_open = False
    tenant.reset(token)
    life.append("client closes")


@jobs.worker_context
@asynccontextmanager
async def async_client() -> AsyncGenerator[AsyncClient]:
    life.append("async client opens")
    made = AsyncClient()
    made.loop, made.task = asyncio.get_running_loop(), asyncio.current_task()
    yield made
    assert asyncio.current_task() is made.task, "some must be left by the asyncio task that entered them"
    made.is_open = False
    life.append("async client closes")


@jobs.worker_context
@contextmanager
def set_up() -> Generator[None]:
    """Yields nothing."""
    life.append("set up")
    yield
    life.append("torn down")


OPENED, CLOSED = (
    ["client opens", "async client opens", "set up"],
    ["torn down", "async client closes", "client closes"],
)


@jobs.task
def fetch(run: RunContext) -> str:
    found = run.resources[Client]
    assert found.is_open
    seen.append(found)
    life.append("ran")
    return tenant.get()


@jobs.task
async def fetch_async(run: AsyncRunContext) -> str:
    found = run.resources[AsyncClient]
    assert found.is_open
    assert found.loop is asyncio.get_running_loop()
    seen.append(found)
    life.append("ran")
    return tenant.get()


def results(session: Session) -> list[Any]:
    session.rollback()
    return [row[0] for row in session.execute(text("SELECT result FROM sqla_runs ORDER BY id"))]


def test_contexts_are_entered_in_order_before_the_first_job_and_left_in_reverse_after_the_last(
    database: Engine, session: Session
) -> None:
    fetch.enqueue_many(session, [{}, {}])
    fetch_async.enqueue_many(session, [{}, {}])
    session.commit()
    with jobs.worker(clock=False) as worker:
        assert life[:3] == OPENED
        wait_until(lambda: worker.runs == 4)
        assert life == [*OPENED, *["ran"] * 4]
    assert life == [*OPENED, *["ran"] * 4, *CLOSED]
    assert [type(one) for one in sorted(seen, key=lambda one: type(one).__name__)] == [AsyncClient] * 2 + [Client] * 2
    assert len({id(one) for one in seen}) == 2
    assert results(session) == ["acme"] * 4  # what a plain one has set is there in each run


def test_they_are_entered_in_the_event_loop_of_an_application(database: Engine, session: Session) -> None:
    fetch_async.enqueue(session)
    session.commit()

    async def main() -> object:
        async with jobs.worker(clock=False) as worker:
            await asyncio.to_thread(wait_until, lambda: worker.runs == 1)
        return asyncio.get_running_loop()

    loop = asyncio.run(main())
    assert life == [*OPENED, "ran", *CLOSED]
    assert isinstance(seen[0], AsyncClient)
    assert seen[0].loop is loop
    assert results(session) == ["acme"]


def test_a_job_that_outlives_the_grace_is_the_only_one_that_finds_it_closed(database: Engine, session: Session) -> None:
    closed, release, late = threading.Event(), threading.Event(), list[bool]()
    other = Jobs(type("Base", (DeclarativeBase,), {}), bind=database)

    @other.worker_context
    @contextmanager
    def one() -> Generator[Client]:
        made = Client()
        yield made
        made.is_open = False
        closed.set()

    @other.task(name="slow")
    def slow(run: RunContext, is_late: bool) -> None:
        if is_late:
            assert closed.wait(20)
        else:
            assert release.wait(20)
            late.append(run.resources[Client].is_open)

    slow.enqueue_many(session, [{"is_late": True}, {"is_late": False}])
    session.commit()
    worker = other.worker(grace=0.5, clock=False)
    worker.start()
    wait_until(lambda: list(states(session).values()) == ["running"] * 2)
    threading.Timer(0.1, release.set).start()
    worker.stop()
    assert closed.is_set()
    assert late == [True]
    assert sorted(states(session).values()) == ["queued", "succeeded"] or "scheduled" in states(session).values()


def _failing(which: str, left: list[str]) -> Jobs[Any]:
    other = Jobs(type("Base", (DeclarativeBase,), {}))

    @other.worker_context
    @contextmanager
    def first() -> Generator[Client]:
        yield Client()
        left.append("first")

    if which == "plain":

        @other.worker_context
        @contextmanager
        def plain() -> Generator[None]:
            raise LookupError("no MODEL_PATH")
            yield

    if which == "async":

        @other.worker_context
        @asynccontextmanager
        async def asynchronous() -> AsyncGenerator[None]:
            raise LookupError("no MODEL_PATH")
            yield

    if which == "twice":

        @other.worker_context
        @contextmanager
        def second() -> Generator[Client]:
            yield Client()
            left.append("second")

    if which == "kind":
        other.worker_context(_hidden)

    @other.task(name="never")
    def never() -> None: ...

    return other


async def _never() -> AsyncGenerator[None]:
    yield


def _hidden() -> AbstractAsyncContextManager[None]:
    return asynccontextmanager(_never)()


def _takes_one(run: RunContext) -> None: ...


@pytest.mark.parametrize(
    ("which", "named", "left"),
    [
        ("plain", r"plain .*LookupError: no MODEL_PATH", 1),
        ("async", r"asynchronous .*LookupError: no MODEL_PATH", 1),
        ("twice", r"tests\.hooks\.test_worker_context\.Client", 2),
        ("kind", "_hidden", 1),
    ],
)
def test_a_worker_does_not_start_where_one_fails_and_leaves_the_others(
    database: Engine, session: Session, which: str, named: str, left: int
) -> None:
    were_left = list[str]()
    other = _failing(which, were_left)
    other.bind(database)
    job = other.tasks["never"].enqueue(session)
    session.commit()
    worker = other.worker(clock=False)
    with pytest.raises(ConfigurationError, match=named):
        worker.start()
    worker.stop()
    assert len(were_left) == left
    session.rollback()
    assert session.execute(text("SELECT count(*) FROM sqla_processes")).scalar() == 0
    assert states(session) == {job.id: "queued"}
    assert "sqla_jobs-loop" not in {thread.name for thread in threading.enumerate()}


def test_an_error_as_one_ends_is_logged_and_the_others_end(
    database: Engine, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    other, left = Jobs(type("Base", (DeclarativeBase,), {}), bind=database), list[str]()

    @other.worker_context
    @contextmanager
    def first() -> Generator[None]:
        yield
        left.append("first")

    @other.worker_context
    @contextmanager
    def raises() -> Generator[None]:
        yield
        raise LookupError("as it ends")

    @other.task(name="fine")
    def fine() -> None: ...

    fine.enqueue(session)
    session.commit()
    assert other.worker().drain() == 1
    assert left == ["first"]
    assert "as it ends" in caplog.text


@pytest.mark.parametrize(("kind", "values"), [(Client, [{}]), (object, [{}, Client()])])
def test_a_resource_that_is_not_there_or_not_the_only_one_is_an_error(
    session: Session, kind: type[object], values: list[object]
) -> None:
    @jobs.task(name="asks")
    def asks(run: RunContext) -> None:
        run.resources[kind]

    with pytest.raises(ConfigurationError, match=kind.__name__):
        run_job(session, asks, resources=values)()


async def _drained(database: Engine, url: str) -> None:
    with Session(database) as plain, pytest.raises(ConfigurationError):
        drain(plain, jobs)
    life.clear()
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session:
        await session.run_sync(lambda own: fetch.enqueue(own) and fetch_async.enqueue(own))
        assert (await session.run_sync(drain, jobs)).runs == 2
        assert life == [*OPENED, *["ran"] * 2, *CLOSED]
        life.clear()
        assert await run_job(session, fetch_async)() == "acme"
        assert life == [*OPENED, "ran", *CLOSED]
    await engine.dispose()


def test_asynchronous_tests_enter_them_in_their_own_loop(database: Engine, database_url: str) -> None:
    asyncio.run(_drained(database, database_url))


async def _coroutine() -> None: ...


def _generator() -> Iterator[None]:
    yield


@pytest.mark.parametrize("target", [_coroutine, _generator, _never, nullcontext, _takes_one])
def test_what_cannot_surround_a_worker_is_refused_when_it_is_declared(target: Any) -> None:
    with pytest.raises(DeclarationError):
        Jobs(type("Other", (DeclarativeBase,), {})).worker_context(target)


APPLICATION = """
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from sqla_jobs import Jobs, AsyncRunContext, RunContext
from sqlalchemy.orm import DeclarativeBase

class Base(DeclarativeBase):
    pass

jobs = Jobs(Base)
HERE = Path(__file__).parent

@jobs.worker_context
@contextmanager
def model() -> Generator[dict[str, int]]:
    with HERE.joinpath("entered").open("a") as file:
        print(os.getpid(), file=file)
    if HERE.joinpath("broken").exists():
        raise LookupError("no MODEL_PATH")
    while HERE.joinpath("wait").exists():
        time.sleep(0.01)
    yield {"pid": os.getpid()}
    HERE.joinpath("left").touch()

@jobs.task(max_attempts=1)
def predict(run: RunContext) -> int:
    return run.resources[dict]["pid"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.joinpath("model_shop.py").write_text(APPLICATION)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


@pytest.mark.slow
def test_a_command_whose_context_fails_ends_with_words_and_without_a_loop_of_restarts(
    database: Engine, database_url: str, start_worker: StartWorker, folder: Path
) -> None:
    folder.joinpath("broken").touch()
    process = start_worker(database_url, "--processes", "2", application="model_shop:jobs")
    assert process.wait(20) == 1
    assert "LookupError: no MODEL_PATH" in folder.joinpath("worker-0.log").read_text()
    assert len(folder.joinpath("entered").read_text().split()) == 1


@pytest.mark.slow
def test_a_new_child_finds_jobs_that_were_announced_before_its_parent_knew_of_it(
    session: Session, database_url: str, start_worker: StartWorker, folder: Path
) -> None:
    process = start_worker(database_url, "--heartbeat", "20", "--lease", "60", application="model_shop:jobs")
    log, entered, wait = folder / "worker-0.log", folder / "entered", folder / "wait"
    wait_until(lambda: "may use up to" in log.read_text() and "serves" in log.read_text())
    wait.touch()
    os.kill(int(entered.read_text()), signal.SIGKILL)
    wait_until(lambda: len(entered.read_text().split()) == 2)
    process.send_signal(signal.SIGSTOP)
    wait.unlink()
    looks = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state = 'idle' AND query LIKE '%probe.floor%'"
    )

    def has_looked() -> bool:
        session.rollback()
        return bool(session.execute(looks).scalar_one())

    wait_until(has_looked)
    session.execute(text("INSERT INTO sqla_jobs (task, state, args) VALUES ('predict', 'queued', '{}')"))
    session.execute(select(func.pg_notify(jobs._models.channel, "default")))
    session.commit()
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: len(results(session)) == 1)


def test_the_exact_class_comes_before_its_subclasses(session: Session) -> None:
    found = [Client(), AsyncClient()]

    @jobs.task(name="finds")
    def finds(run: RunContext) -> list[bool]:
        return [run.resources[Client] is found[0], run.resources[AsyncClient] is found[1]]

    assert run_job(session, finds, resources=found)() == [True, True]
    assert run_job(session, finds, resources=[found[1], {}])() == [False, True]
    assert life == []  # given resources take the place of the contexts
