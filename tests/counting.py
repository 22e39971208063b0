"""Counts what jobs of tests.shop came to, and finds the processes of a worker."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests import shop
from tests.shop import Effect, jobs


def states(engine: Engine, task: str | None = None) -> Counter[str]:
    """Of any application whose jobs are in these tables."""
    counted = select(jobs.Job.state, func.count()).group_by(jobs.Job.state)
    with Session(engine) as session:
        rows = session.execute(counted if task is None else counted.where(jobs.Job.task == task))
        return Counter({str(row[0]): row[1] for row in rows})


def effects(engine: Engine, kind: str) -> Counter[int]:
    with Session(engine) as session:
        return Counter(session.scalars(select(Effect.n).where(Effect.kind == kind)))


@contextmanager
def engine_on(url: str) -> Generator[Engine]:
    """An engine for a server that is restarted."""
    engine = create_engine(url, pool_pre_ping=True)
    try:
        yield engine
    finally:
        engine.dispose()


def tried(condition: Callable[[], bool]) -> bool:
    """The condition; False also while the server is away."""
    try:
        return condition()
    except DBAPIError:
        return False


def runs(engine: Engine, outcome: str) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).where(jobs.Run.outcome == outcome)) or 0


def enqueue_both(engine: Engine, count: int, seconds: float, *, first: float = 0.0) -> None:
    """Enqueue both kinds of jobs. If the first of each is longer, some job runs whenever a process is killed."""
    with Session(engine) as session:
        for task in (shop.write, shop.mark):
            task.enqueue_many(session, ({"n": n, "seconds": seconds if n else first or seconds} for n in range(count)))
        session.commit()


def attempts_and_runs(engine: Engine) -> tuple[int, int]:
    with Session(engine) as session:
        attempts = session.scalar(select(func.sum(jobs.Job.attempt))) or 0
        return attempts, session.scalar(select(func.count()).select_from(jobs.Run)) or 0


def worker_pids(engine: Engine) -> list[int]:
    """The workers that have a row in the database, oldest first."""
    rows = select(jobs.Process.pid).where(jobs.Process.kind == "worker").order_by(jobs.Process.started_at)
    with Session(engine) as session:
        return list(session.scalars(rows))


def children_of(parent: subprocess.Popen[bytes]) -> set[int]:
    """The pids of its children that run Python workers."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            stat = process.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()
            command = process.joinpath("cmdline").read_text(errors="replace")
            if stat[1] == str(parent.pid) and stat[0] != "Z" and "sqla_jobs.supervisor" in command:
                found.add(int(process.name))
    return found
