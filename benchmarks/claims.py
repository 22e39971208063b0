"""Measures the server's time for the statements that claim jobs, alone and without the disk."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.orm import Session

from benchmarks import work
from benchmarks.work import SCHEMA, jobs
from sqla_jobs.database.driver import driver
from sqla_jobs.database.engines import own_engine
from sqla_jobs.database.preparing import PLANNED_ONCE
from sqla_jobs.queries import Queries
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.limit_lock import LockUnflushed
from sqla_jobs.queries.limited import ClaimLimited, Look

_BATCH = 10
_CLAIMS = 200
_TASKS = ("nothing", "keyed_1", "keyed_1000")
_END = f"""UPDATE {SCHEMA}.sqla_jobs SET state = 'succeeded', finished_at = now(), current_run_id = NULL,
    process_id = NULL WHERE id = ANY(%s)"""


class Timed(NamedTuple):
    """A claim, and the seconds that it took."""

    seconds: float
    look: Look


class TimedClaim(ClaimLimited):
    """A limited claim that times its lock and its look, without the two flushes."""

    def timed(self, connection: Connection, process_id: uuid.UUID, *, cursor: str = "{}") -> Timed:
        raw, lock = driver(connection), LockUnflushed(self.tables)
        values = self.values(process_id, "default", _BATCH, _TASKS, cursor=cursor)
        raw.execute("BEGIN")
        began = time.perf_counter()
        lock.run(connection)
        rows = self._rows(connection, values)
        took = time.perf_counter() - began
        raw.execute("COMMIT")
        return Timed(took, self.look(connection, rows, process_id))


@contextmanager
def claiming(engine: Engine) -> Generator[tuple[Connection, uuid.UUID]]:
    """Yield a connection like the one on which a worker claims, and the id of a process that is alive for an hour."""
    with Session(engine) as session:
        session.add(process := jobs.Process(kind="benchmark", lease=3600))
        session.commit()
        process_id = process.id
    own = own_engine(engine, patience=60, most=1, planning=PLANNED_ONCE)
    try:
        with own.connect() as connection:
            connection.exec_driver_sql("SET synchronous_commit = off")
            yield connection, process_id
    finally:
        own.dispose()


def server_time(engine: Engine) -> tuple[float, float]:
    """Return the median milliseconds of a claim of 10 limited jobs and of a plain claim, without the round trip."""
    with claiming(engine) as (connection, process_id):
        limited, queries, cursor = TimedClaim(Tables(jobs.models)), Queries(jobs.models), "{}"
        raw = driver(connection)

        def look() -> float:
            nonlocal cursor
            while True:
                seconds, found = limited.timed(connection, process_id, cursor=cursor)
                cursor = found.cursor
                if len(found.claimed) == _BATCH:  # at the end of a round through all groups, a claim finds fewer
                    return seconds - 2 * there_and_back

        def plain() -> float:
            raw.execute("BEGIN")
            began = time.perf_counter()
            claimed = queries.claim(connection, process_id, {"default": _BATCH}, _TASKS)
            took = time.perf_counter() - began
            raw.execute("COMMIT")
            assert len(claimed) == _BATCH
            return took - there_and_back

        there_and_back = statistics.median(_seconds(lambda: raw.execute("SELECT 1")) for _ in range(_CLAIMS))
        times = [(look(), plain()) for _ in range(_CLAIMS)]
    ours, theirs = (statistics.median(each) for each in zip(*times, strict=True))
    return 1000 * ours, 1000 * theirs


def _seconds(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def under_a_held_snapshot(engine: Engine, runs: int, ends: int) -> tuple[float, float]:
    """Return the median milliseconds of the last `ends` claims, and of the first `ends` claims.

    Each claim takes 10 jobs of one key. In total, `runs` jobs are claimed while another transaction holds a snapshot.
    """
    snapshot = create_engine(engine.url, isolation_level="REPEATABLE READ")
    times, claim = list[float](), TimedClaim(Tables(jobs.models))
    with snapshot.connect() as holding, claiming(engine) as (connection, process_id):
        holding.execute(text("SELECT 1 FROM pg_class LIMIT 1"))
        for _ in range(runs // _BATCH):
            seconds, look = claim.timed(connection, process_id)
            assert len(look.claimed) == _BATCH
            driver(connection).execute(_END, ([job.job_id for job in look.claimed],))
            times.append(seconds)
    snapshot.dispose()
    return 1000 * statistics.median(times[-ends:]), 1000 * statistics.median(times[:ends])


def fill(engine: Engine, task: Any, count: int) -> None:
    """Enqueue this number of jobs."""
    with Session(engine) as session:
        task.enqueue_many(session, ({"i": i} for i in range(count)))
        session.commit()
    work.settle(engine)
