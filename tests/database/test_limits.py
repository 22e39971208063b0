"""What a worker says of the server's limit of connections."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs
from sqla_jobs.database.connection_limits import warn_of_few_connections
from sqla_jobs.monitoring.examine import examine


def test_a_server_that_does_not_tell_its_limit_keeps_no_worker_from_its_work(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A parent asked again and again, and looked for no jobs until then."""
    with engine.begin() as connection:
        connection.execute(text("REVOKE SELECT ON pg_stat_activity FROM PUBLIC"))
    ordinary = create_engine(engine.url, connect_args={"options": "-c role=pg_signal_backend"})
    with caplog.at_level(logging.INFO):
        warn_of_few_connections(ordinary, 3)
    ordinary.dispose()
    assert "cannot read the server's limit of connections" in caplog.text
    assert "permission denied" in caplog.text


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
OWN = 7
"""Those of a worker inside another program, without those of its jobs."""


@jobs.task(queue="webhooks")
async def call(url: str) -> None: ...


@jobs.task(queue="imports")
async def load(session: AsyncSession, path: str) -> None: ...


@jobs.task
def note(session: Session) -> None: ...


@pytest.mark.parametrize(
    ("queues", "of_jobs"),
    [
        ({"webhooks": 500, "default": 4}, 4),
        ({"default": 90}, 20),
        ({"imports": 500}, 20),
        ({"of no task": 500}, 40),
    ],
    ids=str,
)
def test_the_jobs_use_what_the_pools_hold_and_coroutines_without_a_session_nothing(
    engine: Engine, queues: dict[str, int], of_jobs: int
) -> None:
    Base.metadata.create_all(engine)
    app = create_engine(engine.url, pool_size=15, max_overflow=5)
    jobs.bind(app)
    with jobs.worker(queues, clock=False), Session(app) as session:
        (found,) = (one for one in examine(session, jobs) if one.about == "connections")
    app.dispose()
    assert found.found.endswith(f"live workers and clocks may use up to {OWN + of_jobs}")
