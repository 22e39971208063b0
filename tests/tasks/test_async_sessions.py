"""What takes a session refuses an AsyncSession, and its message is what to write instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine

from sqla_jobs import ArgumentsError, Jobs, testing
from tests.testing.kit_shop import jobs, send

CALLS: list[Callable[[Any], object]] = [
    lambda session: send.options(delay=3).enqueue(session, "a@b.c"),
    lambda session: send.enqueue_many(session, []),
    lambda session: jobs.cancel(session, 1),
    lambda session: jobs.retry(session, 1),
    lambda session: jobs.why(session, 1),
    lambda session: jobs.pause(session, "mail"),
    lambda session: jobs.resume(session, task=send),
    lambda session: jobs.set_limit(session, queue="mail", running=1),
    lambda session: jobs.clear_limit(session, send),
    lambda session: jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=60))).changed,
    lambda session: testing.drain(session, jobs),
    lambda session: testing.enqueued(session, jobs),
    lambda session: testing.assert_enqueued(session, send),
    lambda session: testing.assert_not_enqueued(session, send),
    lambda session: testing.make_job(session, send),
]


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.mark.parametrize("call", CALLS)
def test_an_asynchronous_session_is_refused(call: Callable[[Any], object]) -> None:
    for session in (AsyncSession(), async_scoped_session(async_sessionmaker(), scopefunc=lambda: 1)):
        with pytest.raises(ArgumentsError, match="run_sync"):
            call(session)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_message_is_what_to_write(driver: str, database: Engine) -> None:
    async def run() -> None:
        engine = create_async_engine(database.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(engine) as session:
            wrong: Any = session
            with pytest.raises(ArgumentsError) as refused:
                send.enqueue(wrong, "a@b.c", "hi")
            told = str(refused.value).rpartition("write await ")[2]
            assert told == "session.run_sync(send.enqueue, …)"
            await session.run_sync(send.enqueue, email="a@b.c", body="hi")
            await session.commit()
        await engine.dispose()

    asyncio.run(run())
