"""How the threads that store the ends of attempts come to an end."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import Engine

from sqla_jobs.queries import Lease, Queries, RunEnd, processes
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.worker.finisher import Finisher
from tests.shop import jobs


def test_it_ends_at_once_when_all_is_stored_also_where_the_second_thread_has_just_been_called(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.begin() as connection:
        me = processes.register(connection, jobs.models, kind="worker", queues={"default": 8}, lease=30.0)
    settled: list[RunEnd] = []
    finisher = Finisher(database, Queries(jobs.models), SetAside())
    crowd, is_called = finisher._crowd, threading.Event()  # pyright: ignore[reportPrivateUsage]
    clear = crowd.clear

    def late() -> None:
        is_called.set()
        time.sleep(0.05)
        clear()

    monkeypatch.setattr(crowd, "clear", late)
    finisher.start(lambda ends, _: settled.extend(ends))
    ends = [RunEnd(Lease(n, n, me), Outcome.succeeded()) for n in range(1500)]  # of nobody's jobs, which is an end too
    for end in ends:
        finisher.put(end)
    assert is_called.wait(20)
    began = time.monotonic()
    assert finisher.close(20.0)
    assert time.monotonic() - began < 10
    assert len(settled) == len(ends)
    assert finisher.waiting == 0
