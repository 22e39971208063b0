"""Looks at blocked jobs, beside workers of an earlier version, which tell nobody of the jobs that they end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs.queries.resolve import Blocked, LockWatchers, Look, Watchers
from tests import shop
from tests.helpers import states, wait_until


@pytest.mark.slow
def test_a_locked_job_does_not_wait_for_the_next_look(
    database: Engine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which comes only after 20 times as long as a look takes."""
    look, lock, skips = Look.__call__, LockWatchers.__call__, threading.Semaphore(0)

    def look_slowly(self: Look, connection: Any) -> Blocked:
        time.sleep(0.5)
        return look(self, connection)

    def skip(self: LockWatchers, *args: Any, **options: Any) -> Watchers:
        watchers = lock(self, *args, **options)
        if watchers.left:
            skips.release()
        return watchers

    monkeypatch.setattr(Look, "__call__", look_slowly)
    monkeypatch.setattr(LockWatchers, "__call__", skip)
    first = shop.mark.enqueue(session, n=1)
    second = shop.mark.options(after=first).enqueue(session, n=2)
    session.commit()
    with Session(database) as user:
        user.execute(text("SELECT FROM sqla_jobs WHERE id = :id FOR UPDATE"), {"id": second.id})
        with shop.jobs.worker(clock=False):
            assert all(skips.acquire(timeout=20) for _ in range(3)), "two of looks, or of other tries"
            user.rollback()
            wait_until(lambda: states(session)[second.id] == "succeeded", timeout=6.0)
