"""A task gets an instance of the class of session that it is annotated with, whatever is bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlmodel
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncSessionOfSQLModel

from sqla_jobs import Jobs
from tests import sqlmodel_shop
from tests.sqlmodel_shop import Audited, Order, Routing, jobs, settle, settle_awaited


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def async_engine(database_url: str) -> Iterator[AsyncEngine]:
    engine = create_async_engine(database_url)
    yield engine
    asyncio.run(engine.dispose())


def placed(engine: Engine, task: Any = settle) -> int:
    """The id of a job of that task, which settles an order."""
    with sqlmodel.Session(engine) as session:
        session.add(order := Order())
        job = task.enqueue(session, order=order)
        session.commit()
        return int(job.id)


def result(engine: Engine, job: int) -> object:
    with Session(engine) as session:
        found = session.get_one(jobs.Job, job)
        assert [run.error for run in found.runs] == [None]
        return found.runs[0].result


BINDS: dict[str, Callable[[Engine], Any]] = {
    "an engine": lambda engine: engine,
    "a sessionmaker": sessionmaker,
    "one of another subclass": lambda engine: sessionmaker(engine, class_=Routing),
    "a scoped_session": lambda engine: scoped_session(sessionmaker(engine)),
    "a function": lambda engine: lambda: sqlmodel.Session(engine),
}


@pytest.mark.parametrize("bind", BINDS)
def test_a_task_gets_a_session_of_sqlmodel(database: Engine, bind: str) -> None:
    job = placed(database)
    jobs.bind(BINDS[bind](database))
    assert jobs.worker().drain() == 1
    assert result(database, job) == [1]


@pytest.mark.parametrize("bind", ["none", "an engine", "a sessionmaker", "one of SQLModel's"])
def test_a_coroutine_gets_an_async_session_of_sqlmodel(database: Engine, async_engine: AsyncEngine, bind: str) -> None:
    job = placed(database, settle_awaited)
    async_bind: dict[str, Any] = {
        "none": None,
        "an engine": async_engine,
        "a sessionmaker": async_sessionmaker(async_engine),
        "one of SQLModel's": async_sessionmaker(async_engine, class_=AsyncSessionOfSQLModel),
    }
    jobs.bind(database, async_bind=async_bind[bind])
    assert jobs.worker().drain() == 1
    assert result(database, job) == [1]


def test_a_bound_async_sessionmaker_serves_both_kinds_of_tasks(database: Engine, async_engine: AsyncEngine) -> None:
    of_plain, of_coroutine = placed(database), placed(database, settle_awaited)
    jobs.bind(async_sessionmaker(async_engine))
    assert jobs.worker().drain() == 2
    assert result(database, of_plain)
    assert result(database, of_coroutine)
    jobs._binding().engine.dispose()


def test_its_options_and_listeners_are_those_of_the_bound_sessionmaker(database: Engine) -> None:
    own, seen = application_of(Audited), list[Any]()
    bound = sessionmaker(database, info={"tenant": "a"}, expire_on_commit=False)
    event.listen(bound, "before_commit", seen.append)
    own.bind(bound)
    bound.configure(autoflush=False)
    with Session(database) as session:
        own.tasks["look"].enqueue(session)
        session.commit()
    worker = own.worker(clock=False)
    bound.configure(info={"tenant": "b"})
    assert worker.drain() == 1
    assert [isinstance(one, Audited) for one in seen] == [True]
    assert (seen[0].info["tenant"], seen[0].autoflush, seen[0].expire_on_commit) == ("b", False, False)


def application_of(kind: type[Any]) -> Jobs[Any]:
    """One with a task that is annotated with this class."""

    class Base(DeclarativeBase): ...

    own = Jobs(Base)

    def look(session: Any) -> None:
        assert isinstance(session, kind)

    look.__annotations__["session"] = kind
    own.task(name="look")(look)
    return own


def test_a_task_annotated_with_session_gets_what_is_bound(database: Engine) -> None:
    own = application_of(Session)
    own.bind(sessionmaker(database, class_=sqlmodel_shop.Routing))
    assert own.worker().drain() == 0
