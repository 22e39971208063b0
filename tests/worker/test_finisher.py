"""How the threads that store the ends of attempts come to an end."""

from __future__ import annotations

import time

from sqlalchemy import Engine

from sqla_jobs.queries import Lease, Queries, RunEnd, processes
from sqla_jobs.rules.outcomes import Outcome
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.worker.finisher import Finisher
from tests.shop import jobs


def test_it_ends_at_once_when_all_is_stored(database: Engine) -> None:
    with database.begin() as connection:
        me = processes.register(connection, jobs._models, kind="worker", queues={"default": 8}, lease=30.0)
    settled: list[RunEnd] = []
    finisher = Finisher(database, Queries(jobs._models), SetAside(), settled=lambda ends, _: settled.extend(ends))
    finisher.start()
    ends = [RunEnd(Lease(n, n, me), Outcome.succeeded()) for n in range(1500)]  # of nobody's jobs, which is an end too
    for end in ends:
        finisher.put(end)
    began = time.monotonic()
    assert finisher.close(20.0)
    assert time.monotonic() - began < 10
    assert len(settled) == len(ends)
    assert finisher.waiting == 0
