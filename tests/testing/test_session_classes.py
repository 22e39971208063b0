"""Tasks annotated with a class of session of its own, in the session of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sqlmodel
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncSessionOfSQLModel

from sqla_jobs import ConfigurationError, Jobs
from sqla_jobs.testing import drain, run_job
from tests.sqlmodel_shop import Order, jobs, settle, settle_awaited

REFUSED = "settle.* takes a sqlmodel.*Session, and the session of the test is a sqlalchemy.*sqla_jobs_session_class"


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def own(database: Engine) -> Iterator[sqlmodel.Session]:
    with sqlmodel.Session(database) as session:
        yield session


def test_run_job_and_drain_give_the_session_of_the_test(own: sqlmodel.Session) -> None:
    own.add(order := Order())
    assert run_job(own, settle)(order=order) == [order.id]
    settle.enqueue(own, order=order)
    assert drain(jobs, own) == 1


def test_one_of_another_class_is_refused_and_the_job_stays_due(session: Session) -> None:
    session.add(order := Order())
    with pytest.raises(ConfigurationError, match=REFUSED):
        run_job(session, settle)(order=order)
    job = settle.enqueue(session, order=order)
    with pytest.raises(ConfigurationError, match=REFUSED):
        drain(jobs, session)
    assert (job.state, job.attempt) == ("queued", 0)


def test_so_are_asynchronous_ones(database: Engine, database_url: str) -> None:
    async def run() -> None:
        engine = create_async_engine(database_url)
        async with AsyncSessionOfSQLModel(engine) as right:
            right.add(order := Order())
            await right.run_sync(settle_awaited.enqueue, order=order)
            assert await right.run_sync(lambda session: drain(jobs, session)) == 1
            assert await run_job(right, settle_awaited)(order=order) == [order.id]
        async with AsyncSession(engine) as wrong:
            wrong.add(order := Order())
            with pytest.raises(ConfigurationError, match=REFUSED):
                await run_job(wrong, settle_awaited)(order=order)
        await engine.dispose()

    asyncio.run(run())
