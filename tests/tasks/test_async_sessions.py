"""What takes a session says what to write with an AsyncSession; and that is right, as the message is run here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine

from sqla_jobs import ArgumentsError, JobMixin, Jobs, testing
from tests.testing import kit_shop
from tests.testing.kit_shop import Greet, call_the_bank, jobs, paced, send, sync

pytestmark = pytest.mark.filterwarnings("ignore:it goes in the next release")

DRIVERS = ["psycopg", "asyncpg"]
VALUES = {
    "email": "'a@b.c'",
    "body": "'hi'",
    "n": "1",
    "account": "1",
    "name": "'Ada'",
    "older_than": "60",
    "running": "1",
}
"""What stands in the place of … in messages."""
CALLS: dict[str, Callable[[Any, Any], object]] = {
    "send.enqueue, email=…": lambda session, job: send.enqueue(session, "a@b.c"),
    "send.enqueue, email=…, body=…": lambda session, job: send.enqueue(session, email="a@b.c", body="hi"),
    "call_the_bank.enqueue": lambda session, job: call_the_bank.enqueue(session),
    "paced.options(…).enqueue, n=…": lambda session, job: paced.options(delay=3).enqueue(session, n=1),
    "jobs.tasks['Greet'].enqueue, name=…": lambda session, job: jobs.tasks["Greet"].enqueue(session, name="Ada"),
    "send.enqueue_many, […]": lambda session, job: send.enqueue_many(session, []),
    "jobs.enqueue, Greet(…)": lambda session, job: jobs.enqueue(session, Greet("Ada")),
    "jobs.enqueue_many, […]": lambda session, job: jobs.enqueue_many(session, []),
    "jobs.cancel, job": jobs.cancel,
    "jobs.retry, job": jobs.retry,
    "jobs.why, job": jobs.why,
    "jobs.pause, 'mail'": lambda session, job: jobs.pause(session, "mail"),
    "jobs.pause, task=…": lambda session, job: jobs.pause(session, task=send),
    "jobs.resume, 'mail'": lambda session, job: jobs.resume(session, "mail"),
    "jobs.resume, task=…": lambda session, job: jobs.resume(session, task=send),
    "jobs.set_limit, task, running=…": lambda session, job: jobs.set_limit(session, send, running=1),
    "jobs.set_limit, queue='mail', running=…": lambda session, job: jobs.set_limit(session, queue="mail", running=1),
    "jobs.clear_limit, task": lambda session, job: jobs.clear_limit(session, send),
    "jobs.clear_limit, queue='mail'": lambda session, job: jobs.clear_limit(session, queue="mail"),
    "jobs.prune, older_than=…": lambda session, job: jobs.prune(session, older_than=timedelta(days=1)),
    "lambda own: drain(jobs, own)": lambda session, job: testing.drain(jobs, session),
    "startable, jobs": lambda session, job: testing.startable(session, jobs),
    "assert_starts, jobs, job": lambda session, job: testing.assert_starts(session, jobs, job),
    "assert_waits, jobs, job": lambda session, job: testing.assert_waits(session, jobs, job),
    "enqueued, jobs": lambda session, job: testing.enqueued(session, jobs),
    "enqueued, send, email=…": lambda session, job: testing.enqueued(session, send, email="a@b.c"),
    "assert_enqueued, send": lambda session, job: testing.assert_enqueued(session, send),
    "assert_not_enqueued, paced, n=…": lambda session, job: testing.assert_not_enqueued(session, paced, n=1),
    "assert_unique, sync, account=…": lambda session, job: testing.assert_unique(session, sync, account=1),
    "make_job, send": lambda session, job: testing.make_job(session, send),
    "make_job, jobs": lambda session, job: testing.make_job(session, jobs),
    "make_run, job": testing.make_run,
}
"""What is to be given to `run_sync`, and the wrong call."""
NAMES = {**vars(kit_shop), **{name: getattr(testing, name) for name in testing.__all__}, "task": send}


async def right(session: AsyncSession, job: JobMixin, told: str) -> None:
    """Do what the message says."""
    code = re.sub(r"(\w+)=…", lambda found: f"{found[1]}={VALUES.get(found[1], 'send')}", told)
    code = code.replace("options(…)", "options(delay=3)").replace("Greet(…)", "Greet('Ada')").replace("[…]", "[]")
    await eval(f"session.run_sync({code})", {**NAMES, "session": session, "job": job})


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, database: Engine) -> str:
    address: str = database.url.set(drivername=f"postgresql+{request.param}").render_as_string(hide_password=False)
    return address


@pytest.mark.slow
def test_every_message_is_what_to_write(url: str) -> None:
    async def run() -> None:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session, session.begin():
            job = await session.run_sync(send.enqueue, email="a@b.c")
            await session.run_sync(sync.enqueue, account=1)
            await session.flush()
            scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
            for told, wrong in CALLS.items():
                code = re.escape(told)
                with pytest.raises(ArgumentsError, match=rf": write await session\.run_sync\({code}\)$"):
                    wrong(session, job)
                with pytest.raises(ArgumentsError, match=rf": write await session\(\)\.run_sync\({code}\)$"):
                    wrong(scoped, job)
                savepoint = await session.begin_nested()
                if told.startswith("assert_waits"):
                    await session.run_sync(jobs.pause, "default")
                await right(session, job, told)
                await savepoint.rollback()
                await session.refresh(job)
            await scoped.remove()
        await engine.dispose()

    asyncio.run(run())
