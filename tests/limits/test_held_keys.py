"""A failed job that keeps an ordered key, and what may not let go of the key by itself."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue


def test_a_job_that_keeps_a_key_is_not_pruned(database: Engine, session: Session) -> None:
    enqueue(database, shop.held, [{"account": 1, "fails": True}, {"account": 1}])
    with jobs.worker(clock=False):
        wait_until(lambda: states(database) == {"failed": 1, "queued": 1})
    session.execute(text("UPDATE sqla_jobs SET finished_at = finished_at - interval '90 days' WHERE id = 1"))
    session.commit()
    assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=86400))).changed == 0
    jobs.cancel(session, 1)
    session.execute(text("UPDATE sqla_jobs SET finished_at = finished_at - interval '90 days' WHERE id = 1"))
    assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=86400))).changed == 1
    session.commit()
    with jobs.worker(clock=False):
        wait_until(lambda: states(database) == {"succeeded": 1})
