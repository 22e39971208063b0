"""Blocked jobs of which no message tells."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests import shop
from tests.helpers import wait_until
from tests.shop import jobs
from tests.workflows.resolving import state


@pytest.mark.slow
@pytest.mark.polls
def test_a_poll_finds_a_blocked_job_that_could_start(session: Session, database: Engine) -> None:
    """Other code commits the transaction in which it was enqueued, so nobody tells of it."""
    batch = jobs.batch(session)
    shop.mark.options(batch=batch).enqueue(session, n=1)
    later = shop.mark.options(delay=3600).enqueue(session, n=2)
    session.flush()
    shop.mark.options(after=later).enqueue(session, n=3)
    session.commit()
    with jobs.worker(bind=database, poll=0.2, clock=False):
        time.sleep(8.5)  # four looks or more find nothing
        with database.begin() as connection, Session(connection, join_transaction_mode="create_savepoint") as joined:
            report = shop.mark.options(after=joined.merge(batch, load=False)).enqueue(joined, n=4)
            joined.commit()
            report_id = report.id
        began = time.monotonic()
        wait_until(lambda: state(database, report_id) == "succeeded")
        assert time.monotonic() - began < 5
